//! A WebGPU device that routes: all parts in one submission.

use super::{Part, Routes};
use crate::adapter::LinearRouter;
use crate::device::status::Status;
use crate::device::wgpu::{View, Wgpu};
use crate::error::Result;
use crate::ops::route::{Allow, WgpuRouter};

impl Routes for Wgpu {
    fn alone(&self) -> Result<Self> {
        Ok(self.with_own_status())
    }

    fn place(&self, router: LinearRouter) -> Result<WgpuRouter> {
        WgpuRouter::new(self, router)
    }

    fn placed(router: &WgpuRouter) -> &LinearRouter {
        router.linear()
    }

    fn seen(&self) -> Result<Status> {
        self.take_status()
    }

    fn best(&self, parts: &[Part<WgpuRouter>], x: &[f32]) -> Result<Vec<(Vec<i32>, Vec<f32>)>> {
        let (rows, mut encoder, mut outputs) = (self.upload(x)?, self.encoder(), Vec::new());
        for part in parts {
            let bytes = part.routes() as u64 * 4;
            let (ids, scores) = (self.storage("topk_ids", bytes)?, self.storage("topk_weights", bytes)?);
            let allow = part.allow.as_ref().map(|allow| allow.as_allow());
            let lists = allow.map(|a| Ok((self.upload(a.offsets)?, self.upload(a.lists)?))).transpose()?;
            let views = allow.zip(lists.as_ref()).map(|(a, (offsets, lists))| {
                Ok(Allow {
                    offsets: View::new(offsets, 0, a.offsets.len())?,
                    lists: View::new(lists, 0, a.lists.len())?,
                })
            });
            let allow = views.transpose()?;
            let (ids_view, scores_view) =
                (View::new(&ids, 0, part.routes())?, View::new(&scores, 0, part.routes())?);
            let x = View::<f32>::new(&rows, 0, x.len())?;
            self.route(&mut encoder, &part.sizes, part.router, x, allow, ids_view, scores_view)?;
            outputs.push((ids, scores, part.routes()));
        }
        self.queue().submit([encoder.finish()]);
        outputs
            .iter()
            .map(|(ids, scores, len)| Ok((self.download(ids, *len)?, self.download(scores, *len)?)))
            .collect()
    }
}
