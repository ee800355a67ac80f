//! Many seeds on a few threads; each world stays on one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

/// Calls `run` for every seed, on `jobs` threads, and gives `take` what came of it, in the order of ends. Begins no
/// further one once `take` has said that it is enough.
pub(crate) fn each<T: Send>(
    seeds: &[u64],
    jobs: usize,
    run: impl Fn(u64) -> T + Sync,
    mut take: impl FnMut(u64, T) -> bool,
) {
    let (next, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let jobs = jobs.max(1);
    let (send, receive) = mpsc::sync_channel(jobs);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (next, enough, run, send) = (&next, &enough, &run, send.clone());
            scope.spawn(move || {
                while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    if enough.load(Ordering::Relaxed) || send.send((seed, run(seed))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        for (seed, outcome) in receive {
            if !take(seed, outcome) {
                enough.store(true, Ordering::Relaxed);
            }
        }
    });
}
