//! The threads of the CPU: a caller and its helpers share out the tasks of one call.
//!
//! A layer of one token takes less than a millisecond, and waking a processor that sleeps can take as long. So the caller
//! works too, and helpers look for the next call for a while before they sleep: at first without a break, then leaving the
//! processor to whoever wants it. A second caller that finds the helpers taken, and a task that shares out tasks of its own,
//! do without them.
//!
//! ```text
//! state   generation of the call | open? | helpers inside
//! caller  writes the job, opens, works until no task is left, closes, waits until nobody is inside
//! helper  enters an open call by compare and exchange, works until no task is left, leaves
//! ```

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

/// Looks at the state without a break: some 50 microseconds.
const LOOKS: usize = 1500;

/// Looks, others first, before a helper sleeps: some 2 milliseconds where nobody else wants the processor.
const MORE_LOOKS: usize = LOOKS + 4000;

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const GENERATION: u64 = 1 << 32;

/// A caller's helpers. The threads end with it.
#[derive(Debug)]
pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// A caller has the helpers.
    taken: AtomicBool,
    state: AtomicU64,
    job: UnsafeCell<Job>,
    next: AtomicUsize,
    failed: AtomicBool,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
}

/// Tasks of one call: `run(task, i)` for i below `tasks`.
#[derive(Debug, Clone, Copy)]
struct Job {
    run: unsafe fn(*const (), usize),
    task: *const (),
    tasks: usize,
}

// SAFETY: the job is written by the one caller that holds `taken`, while the state is closed and nobody is inside, and read
// only inside; its task is `Sync` and outlives the call, which waits until nobody is inside.
unsafe impl Sync for Shared {}
// SAFETY: as above: the pointers are only followed while their owner waits.
unsafe impl Send for Shared {}

impl Team {
    /// The process's team: a thread for every processor, the caller's among them.
    pub(super) fn of_process() -> Result<Arc<Self>, std::io::Error> {
        static TEAM: OnceLock<Arc<Team>> = OnceLock::new();
        if let Some(team) = TEAM.get() {
            return Ok(team.clone());
        }
        let team = Arc::new(Self::new(0)?);
        Ok(TEAM.get_or_init(|| team).clone())
    }

    /// So many threads, the caller's among them; 0: as many as there are processors.
    pub(super) fn new(threads: usize) -> Result<Self, std::io::Error> {
        let processors = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let helpers = if threads == 0 { processors() } else { threads } - 1;
        let nothing: unsafe fn(*const (), usize) = |_, _| ();
        let shared = Arc::new(Shared {
            taken: AtomicBool::new(false),
            state: AtomicU64::new(0),
            job: UnsafeCell::new(Job { run: nothing, task: std::ptr::null(), tasks: 0 }),
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut team = Self { shared: shared.clone(), helpers: Vec::new() };
        for i in 0..helpers {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("molora-{}", i + 1));
            team.helpers.push(thread.spawn(move || shared.help(i))?);
        }
        Ok(team)
    }

    /// Threads, the caller's among them.
    pub(super) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `task(0..tasks)`, each once, and returns when all are done.
    pub(super) fn each<F: Fn(usize) + Sync>(&self, tasks: usize, task: &F) {
        let shared = &*self.shared;
        let alone = tasks <= 1 || self.helpers.is_empty() || shared.taken.swap(true, SeqCst);
        if alone {
            return (0..tasks).for_each(task);
        }
        /// # Safety
        /// `task` is an F.
        unsafe fn run<F: Fn(usize)>(task: *const (), i: usize) {
            // SAFETY: the caller's promise.
            unsafe { (*task.cast::<F>())(i) }
        }
        let job = Job { run: run::<F>, task: std::ptr::from_ref(task).cast(), tasks };
        // SAFETY: `taken` is ours, and the call before us returned when nobody was inside any more.
        unsafe { *shared.job.get() = job };
        shared.next.store(0, SeqCst);
        shared.failed.store(false, SeqCst);
        shared.state.fetch_add(GENERATION + OPEN, SeqCst);
        for (asleep, helper) in shared.asleep.iter().zip(&self.helpers).take(tasks - 1) {
            if asleep.load(SeqCst) {
                helper.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| shared.work(&job)));
        if own.is_err() {
            shared.next.store(tasks, SeqCst);
        }
        shared.state.fetch_and(!OPEN, SeqCst);
        let mut looks = 0;
        while shared.state.load(SeqCst) & INSIDE != 0 {
            pause(&mut looks);
        }
        let failed = shared.failed.load(SeqCst);
        shared.taken.store(false, SeqCst);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!failed, "a task panicked on another thread");
    }
}

/// Waits a moment; longer waits leave the processor to others.
fn pause(looks: &mut usize) {
    *looks += 1;
    if *looks < LOOKS { std::hint::spin_loop() } else { std::thread::yield_now() }
}

impl Shared {
    fn work(&self, job: &Job) {
        loop {
            let i = self.next.fetch_add(1, SeqCst);
            if i >= job.tasks {
                return;
            }
            // SAFETY: the job's task lives: its owner waits for whoever is inside.
            unsafe { (job.run)(job.task, i) };
        }
    }

    /// A helper's life.
    fn help(&self, own: usize) {
        let (mut seen, mut looks) = (0, 0);
        while !self.stop.load(SeqCst) {
            let state = self.state.load(SeqCst);
            if state & OPEN != 0 && state / GENERATION != seen {
                if self.state.compare_exchange(state, state + 1, SeqCst, SeqCst).is_ok() {
                    (seen, looks) = (state / GENERATION, 0);
                    // SAFETY: inside an open call nobody writes the job.
                    let job = unsafe { *self.job.get() };
                    if catch_unwind(AssertUnwindSafe(|| self.work(&job))).is_err() {
                        self.failed.store(true, SeqCst);
                        self.next.store(job.tasks, SeqCst);
                    }
                    self.state.fetch_sub(1, SeqCst);
                }
                continue;
            }
            if looks < MORE_LOOKS {
                pause(&mut looks);
                continue;
            }
            self.asleep[own].store(true, SeqCst);
            // A call that opened before it could see us asleep is seen here.
            let state = self.state.load(SeqCst);
            if (state & OPEN == 0 || state / GENERATION == seen) && !self.stop.load(SeqCst) {
                std::thread::park();
            }
            self.asleep[own].store(false, SeqCst);
            looks = 0;
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper cannot panic: its tasks' panics are caught.
            let _ = helper.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let team = Team::new(threads).unwrap();
            assert_eq!(team.threads(), threads);
            for round in 0..200 {
                let times: Vec<AtomicUsize> = (0..round % 37).map(|_| AtomicUsize::new(0)).collect();
                team.each(times.len(), &|i| {
                    times[i].fetch_add(1, SeqCst);
                });
                assert!(times.iter().all(|n| n.load(SeqCst) == 1), "{threads} threads, round {round}");
                if round % 50 == 0 {
                    std::thread::sleep(std::time::Duration::from_millis(2)); // the helpers fall asleep
                }
            }
        }
    }

    #[test]
    fn callers_share_a_team_and_tasks_share_out_tasks() {
        let team = Team::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        team.each(5, &|i| {
                            team.each(3, &|j| {
                                sum.fetch_add(i * j, SeqCst);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(SeqCst), 4 * 100 * 10 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(2).unwrap();
        for round in 0..20 {
            let run = || team.each(8, &|i| assert!(i != 5, "task 5"));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "round {round}");
            let done = AtomicUsize::new(0);
            team.each(9, &|_| {
                done.fetch_add(1, SeqCst);
            });
            assert_eq!(done.load(SeqCst), 9);
        }
    }
}
