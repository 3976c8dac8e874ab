//! What the kernel's FUSE client leaves to the server: its cache after asynchronous direct writes, the flags of
//! `EXT4_IOC_SHUTDOWN`.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use extant::{Filesystem, Setup};
use extant_device::OpenOptions;
use extant_fuse::wire::{
    AttrOut, CreateIn, CreateOut, EntryOut, GetattrIn, IoctlIn, OpenIn, OpenOut, ReadIn, ReleaseIn,
    SetattrIn, StatxIn, StatxOut, WriteIn, WriteOut,
};
use extant_fuse::{Adapter, AdapterOptions, Bytes, Empty, InitConfig, Ioctl, Offer, Reply, Request, Server};
use extant_testkit::{env, oracle};

use crate::served::{Served, may_mount};

/// An adapter whose direct writes wait until they are let go.
struct Gated {
    adapter: Adapter,
    state: Mutex<Writes>,
    changed: Condvar,
}

#[derive(Default)]
struct Writes {
    waiting: bool,
    released: bool,
}

const O_DIRECT: u32 = rustix::fs::OFlags::DIRECT.bits();

impl Gated {
    fn new(image: &Path) -> Arc<Self> {
        let device = OpenOptions::new().write(true).open(image).unwrap();
        let fs = Filesystem::open(Arc::new(device), Setup::default()).unwrap();
        let adapter = Adapter::new(fs, AdapterOptions::default());
        Arc::new(Self { adapter, state: Mutex::default(), changed: Condvar::new() })
    }

    fn wait(&self, until: impl Fn(&Writes) -> bool) {
        let mut state = self.state.lock().unwrap();
        while !until(&state) {
            state = self.changed.wait(state).unwrap();
        }
    }

    fn set(&self, change: impl FnOnce(&mut Writes)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }
}

impl Server for Gated {
    fn init(&self, offer: &Offer) -> InitConfig {
        self.adapter.init(offer)
    }
    fn destroy(&self) {
        self.adapter.destroy();
    }
    fn lookup(&self, req: &Request<'_>, name: &[u8], reply: Reply<'_, EntryOut>) {
        self.adapter.lookup(req, name, reply);
    }
    fn forget(&self, node: u64, nlookup: u64) {
        self.adapter.forget(node, nlookup);
    }
    fn getattr(&self, req: &Request<'_>, args: &GetattrIn, reply: Reply<'_, AttrOut>) {
        self.adapter.getattr(req, args, reply);
    }
    fn statx(&self, req: &Request<'_>, args: &StatxIn, reply: Reply<'_, StatxOut>) {
        self.adapter.statx(req, args, reply);
    }
    fn setattr(&self, req: &Request<'_>, args: &SetattrIn, reply: Reply<'_, AttrOut>) {
        self.adapter.setattr(req, args, reply);
    }
    fn open(&self, req: &Request<'_>, args: &OpenIn, reply: Reply<'_, OpenOut>) {
        self.adapter.open(req, args, reply);
    }
    fn create(&self, req: &Request<'_>, args: &CreateIn, name: &[u8], reply: Reply<'_, CreateOut>) {
        self.adapter.create(req, args, name, reply);
    }
    fn read(&self, req: &Request<'_>, args: &ReadIn, reply: Reply<'_, Bytes>) {
        self.adapter.read(req, args, reply);
    }
    fn write(&self, req: &Request<'_>, args: &WriteIn, data: &[u8], reply: Reply<'_, WriteOut>) {
        if args.flags & O_DIRECT != 0 {
            self.set(|w| w.waiting = true);
            self.wait(|w| w.released);
        }
        self.adapter.write(req, args, data, reply);
    }
    fn release(&self, req: &Request<'_>, args: &ReleaseIn, reply: Reply<'_, Empty>) {
        self.adapter.release(req, args, reply);
    }
    fn ioctl(&self, req: &Request<'_>, args: &IoctlIn, data: &[u8], reply: Reply<'_, Ioctl>) {
        self.adapter.ioctl(req, args, data, reply);
    }
}

/// Writes 4096 times `N` at byte 0 of a file, directly and asynchronously (io_submit(2)).
const AIO: &str = "
import ctypes, mmap, os, platform, struct, sys
setup, submit, events = {'x86_64': (206, 209, 208), 'aarch64': (0, 2, 4)}[platform.machine()]
call = ctypes.CDLL(None, use_errno=True).syscall
def check(n):
    if n < 0: raise OSError(ctypes.get_errno(), 'aio')
    return n
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
page.write(b'N' * 4096)
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
context = ctypes.c_ulong(0)
check(call(setup, 1, ctypes.byref(context)))
# struct iocb: data, key, rw_flags, opcode (PWRITE 1), priority, fd, buffer, bytes, offset, reserved, flags, resfd
iocb = ctypes.create_string_buffer(struct.pack('<QIIHhIQQqQII', 0, 0, 0, 1, 0, fd, at, 4096, 0, 0, 0, 0))
one = (ctypes.c_void_p * 1)(ctypes.addressof(iocb))
check(call(submit, context, 1, one))
done = ctypes.create_string_buffer(32)
assert check(call(events, context, 1, 1, done, None)) == 1
assert struct.unpack('<QQqq', done.raw)[2] == 4096, done.raw
";

fn python(script: &str, args: &[&str]) -> Child {
    let mut command = Command::new("python3");
    command.arg("-").args(args).stdin(Stdio::piped());
    let mut child = extant_testkit::oracle::start(&mut command).expect("python3");
    child.stdin.take().expect("stdin").write_all(script.as_bytes()).expect("script");
    child
}

/// The kernel drops its pages before an asynchronous direct write, not after it: what a buffered read got in between must not
/// stay.
#[test]
fn a_buffered_read_during_an_asynchronous_direct_write_leaves_no_old_page() {
    const NAME: &str = "a_buffered_read_during_an_asynchronous_direct_write_leaves_no_old_page";
    if !may_mount(NAME) {
        return;
    }
    need!(env::tools(&["mke2fs", "e2fsck", "python3"]));
    let scratch = env::scratch();
    let image = scratch.sparse("image", 16 << 20);
    oracle::mke2fs(&image, 16 << 20, "-t ext4");
    let server = Gated::new(&image);
    let mount = Served::new(Arc::clone(&server));
    server.adapter.set_notifier(mount.notifier().clone());
    let path = mount.join("file");
    fs::write(&path, [b'O'; 16384]).unwrap();
    let reader = File::open(&path).unwrap();
    let mut writer = python(AIO, &[path.to_str().unwrap()]);
    server.wait(|w| w.waiting);
    let mut page = [0; 4096];
    reader.read_exact_at(&mut page, 0).unwrap();
    assert!(page == [b'O'; 4096], "the write has not happened yet");
    server.set(|w| w.released = true);
    assert!(writer.wait().unwrap().success());
    reader.read_exact_at(&mut page, 0).unwrap();
    assert!(page == [b'N'; 4096], "an old page stayed in the cache");
    let mut rest = [0; 12288];
    reader.read_exact_at(&mut rest, 4096).unwrap();
    assert!(rest == [b'O'; 12288]);
    drop(reader);
    mount.finish().unwrap();
    assert_eq!(server.adapter.ended(), Some(Ok(())));
    oracle::assert_clean(&image);
}

const SHUTDOWN: &str = "
import fcntl, os, struct, sys
try:
    fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', int(sys.argv[2])))
except OSError as e:
    sys.exit(e.errno)
";

/// 0: everything is written and the image is clean; 1: the journal is; 2: nothing is.
#[test]
fn the_flags_of_a_shutdown_reach_the_server() {
    if !may_mount("the_flags_of_a_shutdown_reach_the_server") {
        return;
    }
    need!(env::tools(&["mke2fs", "dumpe2fs", "python3"]));
    for (flags, recovery, late) in [("0", false, Some(4)), ("1", true, Some(0)), ("2", true, None)] {
        let scratch = env::scratch();
        let image = scratch.sparse("image", 16 << 20);
        oracle::mke2fs(&image, 16 << 20, "-t ext4");
        let server = Gated::new(&image);
        let mount = Served::new(Arc::clone(&server));
        fs::write(mount.join("late"), b"late").unwrap();
        let ask = |flags: &str| {
            let status = python(SHUTDOWN, &[mount.path().to_str().unwrap(), flags]).wait().unwrap();
            status.code().unwrap()
        };
        assert_eq!(ask("9"), rustix::io::Errno::INVAL.raw_os_error());
        assert_eq!(ask(flags), 0);
        assert_eq!(fs::write(mount.join("x"), b"").unwrap_err().raw_os_error(), Some(5));
        mount.finish().unwrap();
        assert!(server.adapter.ended().unwrap().is_err());
        let header = oracle::dumpe2fs_header(&image);
        let unclean = header.iter().any(|(_, value)| value.contains("needs_recovery"));
        assert_eq!(unclean, recovery, "flags {flags}");
        drop(server);
        let device = OpenOptions::new().write(true).open(&image).unwrap();
        let fs = Filesystem::open(Arc::new(device), Setup::default()).unwrap();
        let found = fs.lookup(&fs.root().unwrap(), b"late", &extant::Credentials::root()).ok();
        assert_eq!(found.map(|inode| inode.attr().size), late, "flags {flags}");
    }
}
