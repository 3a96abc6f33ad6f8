//! A CUDA device that routes: all parts enqueued, then read.

use super::{Part, Routes};
use crate::adapter::LinearRouter;
use crate::device::cuda::{Cuda, View, ViewMut};
use crate::device::status::Status;
use crate::error::Result;
use crate::ops::route::{Allow, CudaRouter};

impl Routes for Cuda {
    fn alone(&self) -> Result<Self> {
        self.with_own_status()
    }

    fn place(&self, router: LinearRouter) -> Result<CudaRouter> {
        CudaRouter::new(self, router)
    }

    fn placed(router: &CudaRouter) -> &LinearRouter {
        router.linear()
    }

    fn seen(&self) -> Result<Status> {
        self.take_status()
    }

    fn best(&self, parts: &[Part<CudaRouter>], x: &[f32]) -> Result<Vec<(Vec<i32>, Vec<f32>)>> {
        let (x, mut outputs) = (self.upload(x)?, Vec::new());
        for part in parts {
            let (mut ids, mut scores) =
                (self.alloc::<i32>(part.routes())?, self.alloc::<f32>(part.routes())?);
            let allow = part.allow.as_ref().map(|allow| allow.as_allow());
            let lists = allow.map(|a| Ok((self.upload(a.offsets)?, self.upload(a.lists)?))).transpose()?;
            let views = lists.as_ref().map(|(offsets, lists)| {
                Ok(Allow { offsets: View::whole(self, offsets)?, lists: View::whole(self, lists)? })
            });
            let views = views.transpose()?;
            let allow = views.as_ref().map(|Allow { offsets, lists }| Allow { offsets, lists });
            let (x, sizes) = (View::<f32>::whole(self, &x)?, &part.sizes);
            let (mut ids_view, mut scores_view) =
                (ViewMut::whole(self, &mut ids)?, ViewMut::whole(self, &mut scores)?);
            self.route(sizes, part.router, &x, allow, None, &mut ids_view, &mut scores_view)?;
            drop((ids_view, scores_view));
            outputs.push((ids, scores, part.routes()));
        }
        outputs
            .iter()
            .map(|(ids, scores, len)| Ok((self.download(ids, *len)?, self.download(scores, *len)?)))
            .collect()
    }
}
