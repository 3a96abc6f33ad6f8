//! Plan on CUDA.

use super::{OP, Sizes};
use crate::device::cuda::{self, Cuda, Entry, Kernel, Launch, MAX_TOP_K, Memory, Plan, Pool, SHAPE, View};
use crate::device::plan::Layout;
use crate::error::{Error, Result};
use crate::ops::{Form, check_equal, check_len, live_tokens_address};

/// The launches on CUDA: one block for one chunk, else chunks, one scan, chunks again; nothing without routes.
pub fn grid(sizes: &Sizes) -> Vec<Launch> {
    let chunks = Layout::new(sizes, &SHAPE).chunks;
    let launch =
        |(kernel, groups): (Kernel, usize)| Launch::over(Entry::plain(kernel), Form::Many, groups, 1, 1);
    match chunks {
        0 => Vec::new(),
        1 => vec![launch((Kernel::PlanOne, 1))],
        _ => [(Kernel::PlanChunks, chunks), (Kernel::PlanScan, 1), (Kernel::PlanPlace, chunks)]
            .map(launch)
            .to_vec(),
    }
}

impl Cuda {
    /// See the [module](super), in memory taken for it. Ids that name nothing are skipped and set the status word;
    /// `live_tokens` is one word: tokens from there on have no expert.
    pub fn plan(
        &self,
        sizes: &Sizes,
        pool: &Pool,
        topk_ids: &View<i32>,
        live_tokens: Option<&View<u32>>,
    ) -> Result<Plan> {
        sizes.check()?;
        let words = Memory::new(self, (Plan::bytes(sizes) / 4) as usize)?;
        let mut plan = Plan::empty(words);
        self.plan_into(sizes, pool, topk_ids, live_tokens, &mut plan)?;
        Ok(plan)
    }

    /// [`Self::plan`] into the memory of an older plan, which must be large enough.
    pub fn plan_into(
        &self,
        sizes: &Sizes,
        pool: &Pool,
        topk_ids: &View<i32>,
        live_tokens: Option<&View<u32>>,
        plan: &mut Plan,
    ) -> Result<()> {
        sizes.check()?;
        check_equal(OP, "experts", pool.slots().sizes().experts, sizes.experts)?;
        check_len(OP, "topk_ids", sizes.routes(), topk_ids.len())?;
        pool.check_stream(OP, self)?;
        if sizes.top_k > MAX_TOP_K {
            let expected = format!("at most {} on CUDA", MAX_TOP_K);
            return Err(Error::argument(OP, "top_k", expected, sizes.top_k));
        }
        let (bytes, got) = (Plan::bytes(sizes), plan.memory.len() as u64 * 4);
        if bytes > got {
            return Err(Error::argument(
                OP,
                "plan",
                format!("a plan's memory of at least {bytes} bytes"),
                got,
            ));
        }
        let live = live_tokens.and_then(View::stream);
        let (ids, words) = (topk_ids.stream(), plan.memory.stream());
        self.check_streams(OP, [("topk_ids", ids), ("live_tokens", live), ("plan", words)])?;
        let live_tokens = live_tokens_address(OP, live_tokens)?;
        // No pool's until every launch is enqueued: what fails half-way must not pass for a plan.
        (plan.sizes, plan.layout, plan.pool) = (*sizes, Layout::new(sizes, &SHAPE), 0);
        let topk_ids = topk_ids.address();
        let params = cuda::params::PlanParams { live_tokens, topk_ids, ..plan.params(OP, self, pool)? };
        grid(sizes).iter().try_for_each(|launch| self.launch(OP, launch, &params))?;
        plan.pool = pool.slots().id();
        Ok(())
    }
}
