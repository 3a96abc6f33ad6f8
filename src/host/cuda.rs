//! Host slices in and out of a layer on CUDA: uploads, enqueues, downloads.

use crate::adapter::slots::PoolSizes;
use crate::device::cuda::cudarc::driver::{CudaSlice, DeviceRepr};
use crate::device::cuda::{Cuda, View, ViewMut};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::layer::cuda::{RoutingView, Workspace};
use crate::layer::{Base, MoeLora, Routing, Rows};
use crate::ops::check_len;
use crate::ops::route::{Allow, CudaRouter};
use bytemuck::Pod;

/// Device memory for calls of at most so many tokens.
#[derive(Debug)]
pub(super) struct Buffers<X> {
    tokens: usize,
    routes: usize,
    workspace_bytes: [u64; 2],
    x: CudaSlice<X>,
    y: CudaSlice<X>,
    topk_ids: CudaSlice<i32>,
    topk_weights: CudaSlice<f32>,
    workspace: Workspace,
}

#[expect(clippy::too_many_arguments, reason = "the parts of a layer that its caller matched apart")]
pub(super) fn run<X: Element>(
    layer: &MoeLora<Cuda>,
    sizes: &PoolSizes,
    base: Option<Base<&CudaSlice<X>>>,
    buffers: &mut Option<Buffers<X>>,
    rows: &Rows,
    x: &[X],
    routing: Routing,
    y: &mut [X],
) -> Result<()> {
    let (cuda, routes) = (layer.device(), rows.tokens.saturating_mul(layer.router().top_k()));
    check_len("layer", "topk_ids", routes, routing.topk_ids.len())?;
    check_len("layer", "topk_weights", routes, routing.topk_weights.len())?;
    cuda.check_not_capturing("layer")?;
    let b = Buffers::at_least(buffers, layer, sizes, rows.tokens)?;
    copy(cuda, x, &mut b.x)?;
    if base.is_none() {
        copy(cuda, y, &mut b.y)?;
    }
    copy(cuda, routing.topk_ids, &mut b.topk_ids)?;
    copy(cuda, routing.topk_weights, &mut b.topk_weights)?;
    let allow = super::checked_allow(layer.router(), &routing, CudaRouter::linear)?;
    let allow =
        allow.map(|a| Ok::<_, Error>((cuda.upload(a.offsets)?, cuda.upload(a.lists)?))).transpose()?;
    {
        let x_view = View::new(cuda, b.x.slice(..x.len()))?;
        let mut y_view = ViewMut::new(cuda, b.y.slice_mut(..y.len()))?;
        let mut view = RoutingView {
            topk_ids: ViewMut::new(cuda, b.topk_ids.slice_mut(..routes))?,
            topk_weights: ViewMut::new(cuda, b.topk_weights.slice_mut(..routes))?,
            live_tokens: None,
            allow: match &allow {
                Some((offsets, lists)) => Some(Allow {
                    offsets: View::new(cuda, offsets.slice(..))?,
                    lists: View::new(cuda, lists.slice(..))?,
                }),
                None => None,
            },
            given: routing.given,
        };
        match base {
            Some(Base { weight, bias }) => {
                let weight = View::new(cuda, weight.slice(..sizes.in_features * sizes.out_features))?;
                let bias = bias.map(|b| View::new(cuda, b.slice(..sizes.out_features))).transpose()?;
                let base = Base { weight: &weight, bias: bias.as_ref() };
                layer.forward(rows, base, &x_view, &mut view, &mut b.workspace, &mut y_view)?;
            }
            None => layer.forward_delta(rows, &x_view, &mut view, &mut b.workspace, &mut y_view)?,
        }
    }
    y.copy_from_slice(&cuda.download(&b.y, y.len())?);
    routing.topk_ids.copy_from_slice(&cuda.download(&b.topk_ids, routes)?);
    routing.topk_weights.copy_from_slice(&cuda.download(&b.topk_weights, routes)?);
    let status = cuda.take_status()?;
    if !status.is_ok() {
        return Err(Error::argument("layer", "topk_ids", "ids of live slots, finite scores", status));
    }
    Ok(())
}

fn copy<T: Pod + DeviceRepr>(cuda: &Cuda, values: &[T], slice: &mut CudaSlice<T>) -> Result<()> {
    match values {
        [] => Ok(()),
        _ => cuda.stream().memcpy_htod(values, slice).map_err(|e| cuda.failed("upload", e)),
    }
}

impl<X: Element> Buffers<X> {
    /// The buffers there are, or larger ones.
    fn at_least<'a>(
        held: &'a mut Option<Self>,
        layer: &MoeLora<Cuda>,
        sizes: &PoolSizes,
        tokens: usize,
    ) -> Result<&'a mut Self> {
        let cuda = layer.device();
        let (routes, bytes) = (tokens * layer.router().top_k(), layer.workspace_bytes(tokens)?);
        let enough = |held: &[u64; 2]| held[0] >= bytes[0] && held[1] >= bytes[1];
        let fits = |b: &Self| tokens <= b.tokens && routes <= b.routes && enough(&b.workspace_bytes);
        if !held.as_ref().is_some_and(fits) {
            *held = None;
        }
        match held {
            Some(b) => Ok(b),
            None => Ok(held.insert(Self {
                tokens,
                routes,
                workspace_bytes: bytes,
                x: cuda.alloc(tokens * sizes.in_features)?,
                y: cuda.alloc(layer.y_rows(tokens) * sizes.out_features)?,
                topk_ids: cuda.alloc(routes)?,
                topk_weights: cuda.alloc(routes)?,
                workspace: layer.workspace(tokens)?,
            })),
        }
    }
}
