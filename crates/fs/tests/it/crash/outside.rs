//! The outside opinions, on threads of their own: most of a mount and an unmount by the kernel is waiting.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use extant_testkit::kernel::{DeviceMount, Loop};
use extant_testkit::sim::Content;
use extant_testkit::tree::Tree;
use extant_testkit::{Scratch, oracle, scratch};

const THREADS: usize = 3;

/// A recovered image, and what must be in it.
pub(super) struct Job {
    pub(super) content: Content,
    pub(super) tree: Arc<Tree>,
    /// Which state and which script.
    pub(super) from: String,
}

/// What was found wanting: the image, and what is wrong with which state.
pub(super) type Failure = (Content, String);

/// The threads.
pub(super) struct Outside {
    /// Until it is finished.
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    failure: Arc<Mutex<Option<Failure>>>,
}

impl Outside {
    /// Images will be changed copies of `base`.
    pub(super) fn new(base: &Content) -> Self {
        let (jobs, queue) = sync_channel(4 * THREADS);
        let (queue, failure) = (Arc::new(Mutex::new(queue)), Arc::default());
        let thread = |_| {
            let (base, queue, failure) = (base.clone(), Arc::clone(&queue), Arc::clone(&failure));
            std::thread::spawn(move || work(base, &queue, &failure))
        };
        Self { jobs: Some(jobs), threads: (0..THREADS).map(thread).collect(), failure }
    }

    /// Has an image looked at; what comes of it shows later.
    pub(super) fn ask(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("it is not finished");
        jobs.send(job).expect("the threads take jobs until the end");
    }

    /// The first failure so far.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits until all has been looked at.
    pub(super) fn finish(&mut self) -> Option<Failure> {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            thread.join().expect("a thread that asks outside");
        }
        self.failure()
    }
}

impl Drop for Outside {
    /// A test that has failed takes its mounts and loop devices away too.
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(base: Content, queue: &Mutex<Receiver<Job>>, failure: &Mutex<Option<Failure>>) {
    let mut place = Place::new(base);
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { break };
        if let Err(problem) = place.judge(&job) {
            let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert((job.content, format!("{problem}; {}", job.from)));
        }
    }
    place.assert_untouched();
}

/// One image with its loop device, in which one recovered image after the other is put.
struct Place {
    // Before the image that it is on.
    device: Loop,
    image: PathBuf,
    now: Content,
    _scratch: Scratch,
}

impl Place {
    fn new(base: Content) -> Self {
        let scratch = scratch();
        let image = scratch.join("state.img");
        base.to_file(&image).expect("image");
        Self { device: Loop::attach(&image, false), image, now: base, _scratch: scratch }
    }

    /// What e2fsck and the kernel say of a recovered image.
    fn judge(&mut self, job: &Job) -> Result<(), String> {
        self.put(&job.content).map_err(|e| format!("image: {e}"))?;
        let outcome = oracle::e2fsck(&self.image);
        if outcome.status != 0 {
            return Err(format!("e2fsck: {outcome}"));
        }
        let mount = DeviceMount::new(self.device.device(), "ro").map_err(|e| format!("kernel mount: {e}"))?;
        let theirs = Tree::read(mount.path(), false).map_err(|e| format!("kernel: {e}"))?;
        mount.unmount();
        let mut ours = Tree::clone(&job.tree);
        ours.nodes.values_mut().for_each(|node| node.mtime = None);
        let differences = theirs.differences(&ours, 5);
        if differences.is_empty() {
            Ok(())
        } else {
            Err(format!("kernel / extant: {}", differences.join("; ")))
        }
    }

    /// Through the device: so the kernel's cache of it is never older than the image.
    fn put(&mut self, content: &Content) -> std::io::Result<()> {
        let device = OpenOptions::new().write(true).open(self.device.device())?;
        content.update_file(&device, &self.now)?;
        device.sync_all()?;
        self.now = content.clone();
        Ok(())
    }

    /// A mount for reading has changed nothing, or the images were not what they should have been.
    fn assert_untouched(&self) {
        let image = Content::from_file(&self.image).expect("image");
        assert_eq!(image.digest(), self.now.digest(), "the kernel or e2fsck wrote to an image");
    }
}
