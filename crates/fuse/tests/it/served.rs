//! A server on a mount of its own, unmounted at the end of the test.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use extant_fuse::mount::{MountRequest, mount_direct, unmount};
use extant_fuse::{Notifier, Server, Session, SessionOptions, Transport};
use extant_testkit::env;

/// A mount whose server runs in this process.
pub(crate) struct Served {
    dir: tempfile::TempDir,
    notifier: Notifier,
    transport: Transport,
    /// Number of the connection in /sys/fs/fuse/connections.
    connection: u32,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

/// Whether a test may mount; says that it skips if not.
pub(crate) fn may_mount(test: &str) -> bool {
    match env::root().and_then(|()| env::fuse()) {
        Ok(()) => true,
        Err(why) => {
            println!("{test}: skipped: {why}");
            false
        }
    }
}

impl Served {
    pub(crate) fn new<S: Server + 'static>(server: Arc<S>) -> Self {
        Self::with(server, SessionOptions::default())
    }

    pub(crate) fn with<S: Server + 'static>(server: Arc<S>, options: SessionOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut request = MountRequest::new("test", dir.path());
        request.subtype = "extant-test".into();
        let device = mount_direct(&request).unwrap();
        let session = Session::start(device, &*server, options).unwrap();
        let (notifier, transport) = (session.notifier(), session.transport());
        let thread = std::thread::spawn(move || session.run(&*server));
        let connection = rustix::fs::minor(std::fs::metadata(dir.path()).unwrap().dev());
        Self { dir, notifier, transport, connection, thread: Some(thread) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    pub(crate) fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// Unmounts and returns how the session ended.
    pub(crate) fn finish(mut self) -> std::io::Result<()> {
        unmount(self.dir.path(), false).unwrap();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // The test has failed already; leave no mount behind. Its files may still be open, so no waiting. Client and
            // server are one process here, which could not even die while a request is unanswered: abort.
            let _ = unmount(self.dir.path(), true);
            let _ = std::fs::write(format!("/sys/fs/fuse/connections/{}/abort", self.connection), "1");
        }
    }
}
