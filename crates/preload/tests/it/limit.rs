//! RLIMIT_FSIZE of a process, below the size of the image: nothing of the image is lost to it.

use std::process::{Command, ExitStatus};

use extant_testkit::{env, need, oracle};

use crate::support::{Image, interpreter, library, said};

/// Whether a process may raise a hard limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Right {
    /// As this one.
    AsHere,
    /// It lacks the capability.
    Without,
    /// It has the capability in a user namespace of its own alone, where that is no right.
    OfItsNamespace,
}

/// Those without the right that can be had here.
fn without_right() -> Vec<Right> {
    let namespaces = env::tool("unshare").is_some()
        && oracle::output(oracle::command("unshare").args(["-r", "true"])).is_ok_and(|o| o.status.success());
    if namespaces {
        return vec![Right::Without, Right::OfItsNamespace];
    }
    println!("skipped: no user namespaces here");
    vec![Right::Without]
}

/// Runs a Python text over the library after the shell's `before`, which the library does not see.
fn run(image: &Image, python: &str, before: &str, right: Right, text: &str) -> (String, ExitStatus) {
    let within = |program: &str, args: &[&str]| {
        let mut command: Command = image.command(program);
        command.args(args);
        command
    };
    let mut command = match right {
        Right::AsHere => within("sh", &[]),
        Right::Without => {
            within("setpriv", &["--bounding-set=-sys_resource", "--inh-caps=-sys_resource", "sh"])
        }
        Right::OfItsNamespace => within("unshare", &["-r", "sh"]),
    };
    let start = format!("{before}; LD_PRELOAD=\"$LIBRARY\" exec \"$0\" -c \"$1\"");
    command.env_remove("LD_PRELOAD").env("LIBRARY", library()).args(["-c", &start, python, text]);
    let output = oracle::output(&mut command).expect("a shell");
    (said(&output), output.status)
}

/// What the kernel knows of a process that was started.
const STARTED: &str = "
import ctypes, os, resource, signal, subprocess
T = os.environ['T']
FSIZE = resource.RLIMIT_FSIZE
def limit_of(start):
    r, w = os.pipe()
    start(w)
    os.close(w)
    line = [line for line in os.fdopen(r) if line.startswith('Max file size')][0]
    return tuple(line.split()[3:5])
CAT = ['cat', '/proc/self/limits']
def spawned(w):
    actions = [(os.POSIX_SPAWN_DUP2, w, 1)]
    os.waitpid(os.posix_spawn('/bin/cat', CAT, os.environ, file_actions=actions), 0)
def forked(w):
    if os.fork() == 0:
        os.dup2(w, 1)
        os.execv('/bin/cat', CAT)
    os.wait()
libc = ctypes.CDLL(None)
libc.popen.restype = ctypes.c_void_p
def streamed(w):
    libc.pclose(ctypes.c_void_p(libc.popen(b'cat /proc/self/limits >&%d' % w, b'w')))
def commanded(w):
    assert libc.system(b'cat /proc/self/limits >&%d; exit 7' % w) == 7 << 8
def inherited(start):
    return lambda w: (os.set_inheritable(w, True), start(w))
";

/// Whether a hard limit may be raised here.
fn may_raise() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let caps = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("capabilities");
    let namespace = std::fs::read_link("/proc/self/ns/user").expect("a user namespace");
    // The first one's number is the same everywhere.
    let first = namespace.as_os_str() == "user:[4026531837]";
    first && u64::from_str_radix(caps.trim(), 16).expect("a number") & (1 << 24) != 0
}

/// A limit that the process has from its start, of which the image is no part.
#[test]
fn a_limit_from_the_start_spares_the_image() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs", "sh"]));
    let Some(python) = interpreter() else { return };
    let text = format!(
        "{STARTED}
soft, hard = resource.getrlimit(FSIZE)
fd = os.open(T + '/f', os.O_CREAT | os.O_RDWR)
os.write(fd, b'f' * 6000); os.fsync(fd)
print(os.pwrite(fd, b'g' * soft, 5000) == soft - 5000, flush=True)
os.fsync(fd)
shown = tuple('unlimited' if n == resource.RLIM_INFINITY else str(n) for n in (soft, hard))
print([limit_of(inherited(start)) == shown for start in (spawned, forked, streamed, commanded)], flush=True)
os.write(fd, b'end')
print(os.fstat(fd).st_size == soft, resource.getrlimit(FSIZE) == (soft, hard))
"
    );
    // The soft one; where it can be taken back, the hard one too.
    for before in ["ulimit -S -f 1000", "ulimit -f 1000"] {
        if before == "ulimit -f 1000" && !may_raise() {
            println!("skipped: {before}: a hard limit may not be raised here");
            continue;
        }
        let image = Image::new("-t ext4 -b 1024");
        let (said, status) = run(&image, &python, before, Right::AsHere, &text);
        assert!(status.success(), "{said}");
        assert_eq!(said, format!("True\n[True, True, True, True]\nTrue True\n{status}\n"));
        let bytes = oracle::debugfs_cat(&image.path, "/f");
        assert!(bytes[..5000] == [b'f'; 5000] && bytes[6003..].iter().all(|b| *b == b'g'), "{said}");
        image.assert_clean();
    }
}

/// A hard limit below the image's size, without the right to raise it: the mount is refused, and says why.
#[test]
fn a_hard_limit_below_the_image_is_refused() {
    need!(env::root(), env::tools(&["mke2fs", "e2fsck", "sh", "setpriv"]));
    let Some(python) = interpreter() else { return };
    let image = Image::new("-t ext4 -b 1024");
    let before = std::fs::read(&image.path).expect("the image");
    let text = "
import os
try: os.mkdir(os.environ['T'] + '/d')
except OSError as e: print(e.strerror, flush=True)
";
    for right in without_right() {
        let (said, status) = run(&image, &python, "ulimit -f 1000", right, text);
        assert!(status.success(), "{right:?}: {said}");
        assert!(said.contains("File too large") && said.contains("RLIMIT_FSIZE"), "{right:?}: {said}");
        let after = std::fs::read(&image.path).expect("the image");
        assert!(after == before, "{right:?}: it was written to: {said}");
    }
}

/// A program that lowers its own limits, without the right to take that back, has the image to its end.
#[test]
fn a_limit_that_the_program_lowers_spares_the_image() {
    need!(env::root(), env::tools(&["mke2fs", "e2fsck", "debugfs", "sh", "setpriv"]));
    let Some(python) = interpreter() else { return };
    let text = format!(
        "{STARTED}
resource.setrlimit(FSIZE, (60000, 90000))
os.mkdir(T + '/d')
resource.setrlimit(FSIZE, (50000, 80000))
def refused(f, *args):
    try: f(*args)
    except (OSError, ValueError) as e: print(e, flush=True)
    else: print('done', flush=True)
refused(resource.setrlimit, FSIZE, (50000, 80001))
refused(resource.setrlimit, FSIZE, (80001, 80000))
fd = os.open(T + '/f', os.O_CREAT | os.O_RDWR)
print(os.write(fd, b'f' * 60000), resource.getrlimit(FSIZE))
refused(os.write, fd, b'x')
os.fsync(fd)
refused(os.execv, '/nowhere', ['x'])
print([limit_of(inherited(start)) for start in (spawned, forked, streamed, commanded)], flush=True)
os.close(fd)
libc.system(b'true')
refused(os.truncate, T + '/f', 50001)
fd = os.open(T + '/g', os.O_CREAT | os.O_RDWR)
os.write(fd, b'after')
resource.setrlimit(FSIZE, (80000, 80000))
print(os.pwrite(fd, b'end', 79999), resource.getrlimit(FSIZE))
"
    );
    let wanted = "not allowed to raise maximum limit\ncurrent limit exceeds maximum limit\n50000 (50000, 80000)\n\
                  [Errno 27] File too large\n[Errno 2] No such file or directory\n\
                  [('50000', 'unlimited'), ('50000', '80000'), ('50000', 'unlimited'), ('50000', 'unlimited')]\n\
                  [Errno 27] File too large";
    for right in without_right() {
        let image = Image::new("-t ext4 -b 1024");
        let (said, status) = run(&image, &python, "true", right, &text);
        assert!(status.success() && !said.contains("extant_preload:"), "{right:?}: {said}");
        assert!(said.starts_with(wanted), "{right:?}: {said}");
        assert!(said.contains("1 (80000, 80000)\n"), "{right:?}: {said}");
        assert_eq!(oracle::debugfs_cat(&image.path, "/f"), [b'f'; 50000]);
        assert_eq!(oracle::debugfs_cat(&image.path, "/g").len(), 80000);
        image.assert_clean();
    }
}

/// What is written and not yet synced when a program starts another under a limit that it has lowered is there in the end.
#[test]
fn what_is_not_yet_synced_survives_a_start_under_a_lowered_limit() {
    need!(env::root(), env::tools(&["mke2fs", "e2fsck", "debugfs", "sh", "setpriv"]));
    let Some(python) = interpreter() else { return };
    let text = "
import os, resource
T = os.environ['T']
fd = os.open(T + '/f', os.O_CREAT | os.O_RDWR)
os.write(fd, b'f' * 60000)
resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
os.waitpid(os.posix_spawn('/bin/true', ['true'], os.environ), 0)
os.write(fd, b'f' * 30000)
os.fsync(fd)
print('synced')
";
    for right in [Right::AsHere].into_iter().chain(without_right()) {
        let image = Image::new("-t ext4 -b 1024");
        let (said, status) = run(&image, &python, "true", right, text);
        assert_eq!(said, format!("synced\n{status}\n"), "{right:?}");
        assert!(status.success(), "{right:?}");
        assert_eq!(oracle::debugfs_cat(&image.path, "/f"), [b'f'; 90000], "{right:?}");
        image.assert_clean();
    }
}

/// SIGXFSZ that nobody handles ends the process, and what it had written is there, as with a kernel's filesystem.
#[test]
fn the_signal_that_ends_the_process_loses_nothing() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs", "sh"]));
    let Some(python) = interpreter() else { return };
    let text = format!(
        "{STARTED}
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(FSIZE, (50000, resource.getrlimit(FSIZE)[1]))
fd = os.open(T + '/f', os.O_CREAT | os.O_RDWR)
os.write(fd, b'f' * 60000)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGXFSZ])
try: os.write(fd, b'x')
except OSError as e: print(e.strerror, signal.SIGXFSZ in signal.sigpending(), flush=True)
signal.sigtimedwait([signal.SIGXFSZ], 0)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGXFSZ])
os.write(fd, b'x')
print('not here', flush=True)
"
    );
    let image = Image::new("-t ext4 -b 1024");
    let (said, status) = run(&image, &python, "true", Right::AsHere, &text);
    assert!(!status.success(), "{said}");
    assert!(said.starts_with("File too large True\n") && said.contains("(SIGXFSZ)"), "{said}");
    image.assert_clean();
    assert_eq!(oracle::debugfs_cat(&image.path, "/f"), [b'f'; 50000]);
}

/// Threads that write while programs are started: the image is not written to under the limit that those get. And threads that append
/// stop at the limit together.
#[test]
fn threads_that_write_are_not_limited_by_what_is_started() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs", "sh"]));
    let Some(python) = interpreter() else { return };
    let text = "
import os, resource, threading
T = os.environ['T']
resource.setrlimit(resource.RLIMIT_FSIZE, (100000, resource.RLIM_INFINITY))
failed = []
def write(name):
    try:
        fd = os.open(T + '/' + name, os.O_CREAT | os.O_RDWR)
        for i in range(200):
            os.pwrite(fd, b'x' * 4000, i % 25 * 4000)
            os.fsync(fd)
    except OSError as e: failed.append(e)
def append():
    try:
        fd = os.open(T + '/appended', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        while True: os.write(fd, b'y' * 7)
    except OSError as e: pass
threads = [threading.Thread(target=write, args=(name,)) for name in ('a', 'b')]
threads += [threading.Thread(target=append) for _ in range(4)]
for thread in threads: thread.start()
for _ in range(30): os.waitpid(os.posix_spawn('/bin/true', ['true'], os.environ), 0)
for thread in threads: thread.join()
print(failed, os.stat(T + '/appended').st_size)
";
    let image = Image::new("-t ext4 -b 1024");
    let (said, status) = run(&image, &python, "true", Right::AsHere, text);
    assert_eq!(said, format!("[] 100000\n{status}\n"));
    assert!(status.success(), "{said}");
    image.assert_clean();
}
