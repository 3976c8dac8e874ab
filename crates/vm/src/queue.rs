//! What waits for a worker, by pool, and what waits for something to happen. Beside `real`, so that it is explored.

use std::collections::VecDeque;

use extant_sync::{Condvar, Mutex, Rank};

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pool {
    Reads,
    Writes,
}

/// When something was asked: [`Queue::park`] compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

/// Jobs for two pools of threads, and parked ones.
pub(crate) struct Queue<J> {
    state: Mutex<State<J>>,
    work: [Condvar; 2],
}

struct State<J> {
    jobs: [VecDeque<J>; 2],
    parked: Vec<(Pool, J)>,
    epoch: u64,
    closed: bool,
}

impl<J> Queue<J> {
    pub(crate) fn new() -> Self {
        let state =
            State { jobs: [VecDeque::new(), VecDeque::new()], parked: Vec::new(), epoch: 0, closed: false };
        Self { state: Mutex::new(Rank::LEAF, state), work: [Condvar::new(), Condvar::new()] }
    }

    /// Hands a job to a pool; gives it back once the queue is closed.
    pub(crate) fn push(&self, pool: Pool, job: J) -> Result<(), J> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(job);
        }
        state.jobs[pool as usize].push_back(job);
        drop(state);
        self.work[pool as usize].notify_one();
        Ok(())
    }

    /// Waits for a job; `None` once the queue is closed.
    pub(crate) fn next(&self, pool: Pool) -> Option<J> {
        let mut state = self.state.lock();
        self.work[pool as usize]
            .wait_while(&mut state, |state| state.jobs[pool as usize].is_empty() && !state.closed);
        state.jobs[pool as usize].pop_front().filter(|_| !state.closed)
    }

    /// The time now, for [`Self::park`]: to be taken before it is found out that the job cannot be done.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.state.lock().epoch)
    }

    /// Keeps a job until [`Self::unpark`]. If there was one since `asked`, the answer may be old, and the job goes to its pool again at
    /// once (a lost wakeup otherwise: test `a_parked_job_is_asked_again`). Gives it back once the queue is closed.
    pub(crate) fn park(&self, pool: Pool, job: J, asked: Epoch) -> Result<(), J> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(job);
        }
        if state.epoch == asked.0 {
            state.parked.push((pool, job));
            return Ok(());
        }
        state.jobs[pool as usize].push_back(job);
        drop(state);
        self.work[pool as usize].notify_one();
        Ok(())
    }

    /// Hands everything that is parked to its pool; how much.
    pub(crate) fn unpark(&self) -> usize {
        let mut state = self.state.lock();
        state.epoch += 1;
        let parked = std::mem::take(&mut state.parked);
        let count = parked.len();
        for (pool, job) in parked {
            state.jobs[pool as usize].push_back(job);
        }
        drop(state);
        if count > 0 {
            self.work.iter().for_each(Condvar::notify_all);
        }
        count
    }

    /// Sends the threads home; what was left undone.
    pub(crate) fn close(&self) -> Vec<J> {
        let mut state = self.state.lock();
        state.closed = true;
        let State { jobs, parked, .. } = &mut *state;
        let left = jobs.iter_mut().flat_map(|jobs| jobs.drain(..)).collect::<Vec<J>>();
        let left = left.into_iter().chain(parked.drain(..).map(|(_, job)| job)).collect();
        drop(state);
        self.work.iter().for_each(Condvar::notify_all);
        left
    }
}

#[cfg(test)]
mod tests;
