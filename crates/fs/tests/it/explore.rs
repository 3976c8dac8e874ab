//! Schedules of two or three threads on the same few names and files, under the exploring runtime.
//!
//! Scripts are drawn from a small pool of operations that overlap in names and inodes. After each schedule: what every
//! operation answered, and the tree that is left, must be what the model gives for some order of the operations; the image
//! must be clean by our checker. Then scenarios of single races, each with a mutant: the guard that makes it right is taken away,
//! and the scenario must notice.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use extant::{
    Credentials, Error, Filesystem, InodeRef, Mutant, NewInode, RenameFlags, SetAttr, Setup, WriteFlags,
    XattrSet,
};
use extant_device::{BlockDevice, FileDevice, MemoryDevice, MemoryImage};
use extant_format::{Incompat, Superblock};
use extant_fsck::Report;
use extant_sync::{model, thread};
use extant_testkit::env::{scratch, seed, tools};
use extant_testkit::model::Model;
use extant_testkit::oracle::mke2fs;
use extant_testkit::rng::Rng;
use extant_testkit::script::{Executor, Op, parse, text};
use extant_testkit::tree::Tree;
use rustix::io::Errno;

use crate::support::{LibExecutor, tree_of};

const SIZE: u64 = 4 << 20;
/// Calls go deep, in debug builds on large frames.
pub(crate) const STACK: usize = 1 << 20;

/// What the scripts begin with.
const BEFORE: &str = "
    mkdir d 755
    mkdir d/s 755
    create a 644
    write a 0 1500 7
    create d/b 644
    write d/b 0 40 3
";

/// What they are made of: operations, and steps that are none of the model's.
const POOL: &[&str] = &[
    "create a 600",
    "create d/n 644",
    "unlink a",
    "unlink d/b",
    "rename a d/b",
    "rename d/b a",
    "rename a d/b exchange",
    "rename a d/n noreplace",
    "rename d/s e",
    "rename d e",
    "link a d/n",
    "link d/b c",
    "rmdir d/s",
    "mkdir d/s/t 755",
    "write a 0 100 1",
    "write a 1000 2100 2",
    "write d/b 50 200 4",
    "truncate a 10",
    "truncate a 5000",
    "punch a 0 1024",
    "setxattr a user.x 40 5",
    "setxattr a user.x 600 6",
    "chmod a 640",
    "fsync a",
    "fdatasync d/b",
    "sync",
    "#freeze",
    "#list d",
    "#read a",
    "#hold a",
];

/// Images as mke2fs makes them, with what the scripts begin with.
pub(crate) fn image(args: &'static str) -> MemoryImage {
    type Images = Vec<(&'static str, MemoryImage)>;
    static MADE: OnceLock<Mutex<Images>> = OnceLock::new();
    let mut made = MADE.get_or_init(Mutex::default).lock().unwrap();
    if let Some((_, bytes)) = made.iter().find(|(a, _)| *a == args) {
        return bytes.clone();
    }
    let dir = scratch();
    let path = dir.join("image");
    // A journal has 1024 blocks at least.
    let size =
        [("-b 4096", 3 * SIZE), ("-b 2048", 2 * SIZE)].into_iter().find(|(with, _)| args.contains(with));
    mke2fs(&path, size.map_or(SIZE, |(_, size)| size), args);
    let bytes = Arc::new(Mutex::new(MemoryImage::from_bytes(&std::fs::read(path).expect("image"))));
    let shared = Arc::clone(&bytes);
    let fill = move || {
        let device = Arc::new(MemoryDevice::from_image(&shared.lock().unwrap()));
        let fs = open(&device, Mutant::None);
        let mut executor = LibExecutor::new(Arc::clone(&fs));
        for op in parse(BEFORE).unwrap() {
            executor.apply(&op).unwrap();
        }
        drop(executor);
        fs.unmount().unwrap();
        drop(fs);
        *shared.lock().unwrap() = device.image();
    };
    model::check_random_deep(fill, 1, 1, STACK);
    let bytes = bytes.lock().unwrap().clone();
    made.push((args, bytes.clone()));
    bytes
}

pub(crate) fn open<D: BlockDevice + 'static>(device: &Arc<D>, mutant: Mutant) -> Arc<Filesystem> {
    let options = extant::MountOptions {
        cache_size: Some(4 << 20),
        // A thread less.
        init_itable: Some(extant::InitItable::Off),
        ..extant::MountOptions::default()
    };
    let setup = Setup { options, mutant, ..Setup::default() };
    Filesystem::open(Arc::clone(device) as Arc<dyn BlockDevice>, setup).expect("mount")
}

/// A device that the checker can read, whose threads are none of the runtime's.
pub(crate) trait Checked: BlockDevice {
    fn checked(&self) -> Report;
}

impl Checked for MemoryDevice {
    fn checked(&self) -> Report {
        extant_fsck::check(&self.image(), &extant_fsck::Options::default())
    }
}

impl Checked for FileDevice {
    fn checked(&self) -> Report {
        extant_fsck::check(self, &extant_fsck::Options::default())
    }
}

fn assert_clean(device: &impl Checked, what: &str) {
    let report = device.checked();
    let errors: Vec<_> = report.errors().map(|e| format!("{e:?}")).collect();
    assert!(report.is_clean(), "{what}: {errors:#?}");
}

/// Unmounts, and checks what is left.
pub(crate) fn close(fs: Arc<Filesystem>, device: &impl Checked, what: &str) {
    fs.unmount().unwrap_or_else(|e| panic!("{what}: unmount: {e}"));
    drop(fs);
    assert_clean(device, what);
}

pub(crate) fn together(tasks: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = tasks.into_iter().map(|task| thread::spawn(task)).collect();
    for t in threads {
        t.join().expect("no panic inside");
    }
}

/// Does one step; what an operation of the model's answered.
fn step(executor: &mut LibExecutor, words: &str) -> Option<Result<(), Errno>> {
    let fs = Arc::clone(&executor.fs);
    let cred = Credentials::root();
    let find = |path: &str| {
        path.split('/').try_fold(fs.root()?, |at: InodeRef, name| fs.lookup(&at, name.as_bytes(), &cred))
    };
    match words.split_once(' ').unwrap_or((words, "")) {
        ("#freeze", _) => {
            fs.freeze(&cred).expect("freeze");
            fs.thaw(&cred).expect("thaw");
        }
        ("#list", path) => {
            if let Ok(dir) = find(path) {
                let mut seen = Vec::new();
                fs.read_dir(&dir, extant::START, &cred, &mut |entry| {
                    seen.push(entry.name.to_vec());
                    ControlFlow::Continue(())
                })
                .expect("listing");
                seen.sort();
                assert!(seen.windows(2).all(|two| two[0] != two[1]), "a name twice: {seen:?}");
            }
        }
        ("#read", path) => {
            if let Ok(file) = find(path) {
                fs.read_at(&file, 0, &mut [0; 4096]).expect("read");
            }
        }
        ("#hold", path) => {
            // In use while it may lose its name: evicted by whoever lets go last.
            if let Ok(file) = find(path) {
                fs.write_at(&file, 20, &[9; 30], WriteFlags::default(), &cred).expect("write");
                fs.read_at(&file, 0, &mut [0; 64]).expect("read");
            }
        }
        _ => {
            let [op] = &parse(words).expect("the pool's words")[..] else { panic!("one operation") };
            return Some(executor.apply(op));
        }
    }
    None
}

/// What the model sees of a step.
fn of_model(words: &str) -> Option<Op> {
    if words.starts_with('#') { None } else { parse(words).expect("the pool's words").pop() }
}

/// All orders of two scripts' steps: `true` for one of the first.
fn orders(first: usize, second: usize) -> Vec<Vec<bool>> {
    match (first, second) {
        (0, n) => vec![vec![false; n]],
        (n, 0) => vec![vec![true; n]],
        (a, b) => {
            let begin = |head: bool, rest: Vec<Vec<bool>>| {
                rest.into_iter().map(move |tail| [vec![head], tail].concat()).collect::<Vec<_>>()
            };
            [begin(true, orders(a - 1, b)), begin(false, orders(a, b - 1))].concat()
        }
    }
}

type Answers = Vec<Result<(), Errno>>;

/// Whether a link failed because its source lost its name, or its target got one, between the two look-ups: it is no operation of
/// one moment then, and changes nothing.
fn failed_between(op: &Op, answer: Result<(), Errno>) -> bool {
    matches!(op, Op::Link { .. }) && matches!(answer, Err(Errno::NOENT | Errno::EXIST))
}

/// Whether some order of the operations gives these answers and this tree; else what the orders give.
fn explained(scripts: &[Vec<&'static str>; 2], answers: &[Answers; 2], tree: &Tree) -> Result<(), String> {
    let ops: Vec<Vec<Op>> = scripts.iter().map(|s| s.iter().filter_map(|w| of_model(w)).collect()).collect();
    let mut why = String::new();
    for order in orders(ops[0].len(), ops[1].len()) {
        let mut model = Model::after(&parse(BEFORE).unwrap());
        let mut at = [0, 0];
        let mut same = true;
        let mut done = Vec::new();
        for first in order {
            let who = usize::from(!first);
            let op = &ops[who][at[who]];
            let answer = answers[who][at[who]];
            if !failed_between(op, answer) {
                same &= model.apply(op) == answer;
            }
            done.push(op.clone());
            at[who] += 1;
        }
        let mut expected = model.tree();
        expected.nodes.values_mut().for_each(|node| node.mtime = None);
        let differences = expected.differences(tree, 3);
        if same && differences.is_empty() {
            return Ok(());
        }
        why +=
            &format!("{}answers {}, {differences:?}\n", text(&done), if same { "agree" } else { "differ" });
    }
    Err(why)
}

/// One schedule of two random scripts.
fn random_pair(args: &'static str, image: &MemoryImage, seed: u64, number: u64) {
    let mut rng = Rng::new(seed).fork(number);
    let mut script = || -> Vec<&'static str> { (0..2).map(|_| *rng.pick(POOL)).collect() };
    let mut scripts = [script(), script()];
    if scripts[1].contains(&"#freeze") {
        // One freezes at a time.
        scripts[0].retain(|words| *words != "#freeze");
        let mut seen = false;
        scripts[1].retain(|words| *words != "#freeze" || !std::mem::replace(&mut seen, true));
    }
    // What was written through a reference, and where a path leads whose directory is moved on the way, is not the model's to say.
    let beyond_model = scripts.iter().flatten().any(|words| ["#hold a", "rename d e"].contains(words));
    let what = format!("SEED={seed} number {number} {args}: {scripts:?}");
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, Mutant::None);
    let answers = Arc::new(Mutex::new([Vec::new(), Vec::new()]));
    let tasks = (0..2).map(|who: usize| -> Box<dyn FnOnce() + Send> {
        let (fs, script, answers) = (Arc::clone(&fs), scripts[who].clone(), Arc::clone(&answers));
        Box::new(move || {
            let mut executor = LibExecutor::new(fs);
            for words in script {
                if let Some(answer) = step(&mut executor, words) {
                    answers.lock().unwrap()[who].push(answer);
                }
            }
        })
    });
    together(tasks.collect());
    fs.sync().unwrap_or_else(|e| panic!("{what}: sync: {e}"));
    let mut tree = tree_of(&fs);
    tree.nodes.values_mut().for_each(|node| node.mtime = None);
    let answers = answers.lock().unwrap().clone();
    if !beyond_model && let Err(why) = explained(&scripts, &answers, &tree) {
        panic!("{what}\n{answers:?}\nno order of the operations explains it:\n{why}");
    }
    close(fs, &*device, &what);
}

fn random_pairs(args: &'static str, times: usize) {
    let seed = seed();
    println!("seed={seed}");
    let image = image(args);
    let number = Arc::new(AtomicU64::new(0));
    let scenario = move || random_pair(args, &image, seed, number.fetch_add(1, Ordering::Relaxed));
    model::Lab::new(&format!("pairs of scripts, {args}"), times).deep(seed, STACK).holds(scenario);
}

#[test]
fn pairs_of_scripts() {
    need!(tools(&["mke2fs"]));
    random_pairs("-t ext4 -b 1024 -I 256 -N 64 -J size=1 -O ^resize_inode,orphan_file", 300);
}

#[test]
fn pairs_of_scripts_inline_without_orphan_file() {
    need!(tools(&["mke2fs"]));
    random_pairs(
        "-t ext4 -b 1024 -I 256 -N 64 -J size=1 -O ^resize_inode,inline_data,ea_inode,^orphan_file",
        150,
    );
}

#[test]
fn pairs_of_scripts_without_journal() {
    need!(tools(&["mke2fs"]));
    random_pairs("-t ext2 -b 1024 -I 128 -N 64 -O ^resize_inode", 200);
}

/// Runs a scenario; as a mutant, until it is caught.
pub(crate) fn explore(scenario: fn(&MemoryImage, Mutant), args: &'static str, mutant: Mutant, times: usize) {
    need!(tools(&["mke2fs"]));
    explore_on(image(args), scenario, mutant, times);
}

fn explore_on(image: MemoryImage, scenario: fn(&MemoryImage, Mutant), mutant: Mutant, times: usize) {
    let seed = seed();
    println!("seed={seed}");
    let run = move || scenario(&image, mutant);
    // The scenario's name is the test's.
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let name = test.rsplit("::").next().unwrap_or_default().replace('_', " ");
    let lab = model::Lab::new(&name, 2 * times).deep(seed, STACK);
    match mutant {
        Mutant::None => lab.holds(run),
        mutant => lab.notices(&format!("{mutant:?}"), 40 * times, run),
    }
}

pub(crate) fn find(fs: &Filesystem, path: &str) -> InodeRef {
    let cred = Credentials::root();
    path.split('/').fold(fs.root().unwrap(), |at, name| fs.lookup(&at, name.as_bytes(), &cred).unwrap())
}

const INLINE: &str =
    "-t ext4 -b 1024 -I 256 -N 64 -J size=1 -O ^resize_inode,inline_data,ea_inode,^orphan_file";

/// The content of a file leaves the inode while it is read: whoever reads finds it, before, meanwhile and afterwards.
fn inline_moves(image: &MemoryImage, mutant: Mutant) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let (file, cred) = (find(&fs, "d/b"), Credentials::root());
    let mut before = [0; 40];
    assert_eq!(fs.read_at(&file, 0, &mut before).unwrap(), 40);
    let (a, b) = ((Arc::clone(&fs), file.clone()), (Arc::clone(&fs), file.clone()));
    together(vec![
        Box::new(move || {
            let (fs, file) = a;
            fs.write_at(&file, 300, &[1; 500], WriteFlags::default(), &cred).unwrap();
        }),
        Box::new(move || {
            let (fs, file) = b;
            let mut now = [0; 40];
            assert_eq!(fs.read_at(&file, 0, &mut now).unwrap(), 40);
            assert_eq!(now, before, "while it moves");
        }),
    ]);
    let mut after = [0; 40];
    fs.read_at(&file, 0, &mut after).unwrap();
    assert_eq!(after, before, "the cache keeps something else");
    drop(file);
    close(fs, &*device, "inline content that moves");
}

#[test]
fn reading_while_inline_content_moves() {
    explore(inline_moves, INLINE, Mutant::None, 150);
}

#[test]
fn mutant_readers_beside_the_move() {
    explore(inline_moves, INLINE, Mutant::InlineMove, 150);
}

/// A directory leaves its inode for a block while it is renamed, which looks at its `..`, and while somebody tries to remove it.
fn directory_moves(image: &MemoryImage, mutant: Mutant) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let (a, b) = ((Arc::clone(&fs), find(&fs, "d")), (Arc::clone(&fs), fs.root().unwrap()));
    together(vec![
        Box::new(move || {
            let ((fs, dir), cred) = (a, Credentials::root());
            for name in [[b'x'; 100], [b'y'; 100]] {
                fs.mknod(&dir, &name, &NewInode::file(0o644), &cred).unwrap();
            }
        }),
        Box::new(move || {
            let ((fs, root), cred) = (b, Credentials::root());
            fs.rename(&root, b"d", &root, b"e", extant::RenameFlags::default(), &cred).unwrap();
            let refused = fs.rmdir(&root, b"e", &cred).unwrap_err();
            assert!(matches!(refused, extant::Error::NotEmpty), "{refused}");
        }),
    ]);
    close(fs, &*device, "a directory that leaves its inode");
}

#[test]
fn renaming_a_directory_that_leaves_its_inode() {
    explore(directory_moves, INLINE, Mutant::None, 150);
}

#[test]
fn mutant_a_directory_on_its_way_has_no_parent() {
    explore(directory_moves, INLINE, Mutant::LeavingSeen, 150);
}

/// A large value is replaced while it is read: the old one or the new one comes, never damage.
fn value_replaced(image: &MemoryImage, mutant: Mutant) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let (file, cred) = (find(&fs, "a"), Credentials::root());
    let name: &[u8] = b"user.large";
    fs.set_xattr(&file, name, &[1; 3000], XattrSet::Any, &cred).unwrap();
    let (a, b) = ((Arc::clone(&fs), file.clone(), cred.clone()), (Arc::clone(&fs), file.clone(), cred));
    together(vec![
        Box::new(move || {
            let (fs, file, cred) = a;
            fs.set_xattr(&file, name, &[2; 2500], XattrSet::Replace, &cred).unwrap();
        }),
        Box::new(move || {
            let (fs, file, cred) = b;
            let value = fs.get_xattr(&file, name, &cred).unwrap();
            assert!(value == [1; 3000] || value == [2; 2500], "{} bytes", value.len());
        }),
    ]);
    drop(file);
    close(fs, &*device, "a value that is replaced");
}

#[test]
fn reading_a_large_value_while_it_is_replaced() {
    explore(value_replaced, INLINE, Mutant::None, 150);
}

#[test]
fn mutant_values_read_without_the_lock() {
    explore(value_replaced, INLINE, Mutant::XattrHeld, 150);
}

/// The last attribute with a value goes while another file gets the same value.
fn value_shared(image: &MemoryImage, mutant: Mutant) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let (one, other, cred) = (find(&fs, "a"), find(&fs, "d/b"), Credentials::root());
    let name: &[u8] = b"user.large";
    fs.set_xattr(&one, name, &[1; 3000], XattrSet::Any, &cred).unwrap();
    let (a, b) = ((Arc::clone(&fs), one, cred.clone()), (Arc::clone(&fs), other.clone(), cred.clone()));
    together(vec![
        Box::new(move || {
            let (fs, file, cred) = a;
            fs.remove_xattr(&file, name, &cred).unwrap();
        }),
        Box::new(move || {
            let (fs, file, cred) = b;
            fs.set_xattr(&file, name, &[1; 3000], XattrSet::Any, &cred).unwrap();
        }),
    ]);
    assert_eq!(fs.get_xattr(&other, name, &cred).unwrap(), [1; 3000]);
    drop(other);
    close(fs, &*device, "a value that is shared as it goes");
}

#[test]
fn sharing_a_value_that_goes() {
    explore(value_shared, INLINE, Mutant::None, 150);
}

#[test]
fn mutant_references_counted_and_recorded_apart() {
    explore(value_shared, INLINE, Mutant::ValueCounted, 150);
}

#[test]
fn mutant_a_shared_value_left_among_the_orphans() {
    explore(value_shared, INLINE, Mutant::ValueRevived, 150);
}

pub(crate) const PLAIN: &str = "-t ext4 -b 1024 -I 256 -N 64 -J size=1 -O ^resize_inode,orphan_file";

/// An inode's attributes are changed, others commit, and its content is written in the background. What fsync says afterwards
/// is on the device.
fn synced(image: &MemoryImage, mutant: Mutant) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let (file, other) = (find(&fs, "d/b"), find(&fs, "a"));
    fs.write_at(&file, 1024, &[8; 1024], WriteFlags::default(), &Credentials::root()).unwrap();
    let change = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let (a, b, c) = ((Arc::clone(&fs), file.clone()), Arc::clone(&fs), (Arc::clone(&fs), other));
    together(vec![
        Box::new(move || {
            a.0.set_attr(&a.1, &change, &Credentials::root()).unwrap();
        }),
        Box::new(move || b.write_back().unwrap()),
        Box::new(move || {
            c.0.set_attr(&c.1, &change, &Credentials::root()).unwrap();
            c.0.sync_inode(&c.1, false).unwrap();
        }),
    ]);
    fs.fsync(&file, false).unwrap();
    let now = Arc::new(MemoryDevice::from_image(&device.image()));
    let crashed = Filesystem::open(now as Arc<dyn BlockDevice>, Setup::read_only()).unwrap();
    let mut bytes = [0; 1024];
    let got = crashed.read_at(&find(&crashed, "d/b"), 1024, &mut bytes).unwrap();
    assert!(got == 1024 && bytes == [8; 1024], "fsync returned, and {got} bytes are there");
    crashed.unmount().unwrap();
    drop(file);
    close(fs, &*device, "what was synced");
}

#[test]
fn fsync_waits_for_the_newest_change() {
    explore(synced, PLAIN, Mutant::None, 150);
}

/// Two threads make the same name: one of them does.
fn same_name(image: &MemoryImage, mutant: Mutant) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let made = Arc::new(AtomicU64::new(0));
    let tasks = [0o600, 0o640].map(|mode| -> Box<dyn FnOnce() + Send> {
        let (fs, dir, made) = (Arc::clone(&fs), find(&fs, "d"), Arc::clone(&made));
        Box::new(move || {
            let new = fs.mknod(&dir, b"new", &NewInode::file(mode), &Credentials::root());
            made.fetch_add(u64::from(new.is_ok()), Ordering::Relaxed);
        })
    });
    together(tasks.into());
    assert_eq!(made.load(Ordering::Relaxed), 1);
    close(fs, &*device, "one name");
}

#[test]
fn one_name_is_made_once() {
    explore(same_name, PLAIN, Mutant::None, 100);
}

#[test]
fn mutant_unlocked_before_the_name_is_entered() {
    explore(same_name, PLAIN, Mutant::PlanHeld, 100);
}

/// The first two inodes of a block of the inode table come at the same time, in different directories.
fn fresh_table_block(image: &MemoryImage, mutant: Mutant) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let tasks = ["d", "d/s"].map(|dir| -> Box<dyn FnOnce() + Send> {
        let (fs, dir) = (Arc::clone(&fs), find(&fs, dir));
        Box::new(move || {
            for name in [b"x", b"y", b"z"] {
                fs.mknod(&dir, name, &NewInode::file(0o644), &Credentials::root()).unwrap();
            }
        })
    });
    together(tasks.into());
    close(fs, &*device, "inodes of one table block");
}

#[test]
fn creation_in_one_table_block() {
    explore(fresh_table_block, PLAIN, Mutant::None, 150);
}

/// Two files lose their names and are freed while others come and the list of orphans changes.
fn removal(image: &MemoryImage, mutant: Mutant) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let (a, b) = (Arc::clone(&fs), Arc::clone(&fs));
    together(vec![
        Box::new(move || {
            let cred = Credentials::root();
            a.unlink(&a.root().unwrap(), b"a", &cred).unwrap();
            a.mknod(&a.root().unwrap(), b"a", &NewInode::file(0o644), &cred).unwrap();
        }),
        Box::new(move || {
            let (dir, cred) = (find(&b, "d"), Credentials::root());
            let gone = b.unlink(&dir, b"b", &cred).unwrap();
            b.write_at(&gone, 0, &[3; 3000], WriteFlags::default(), &cred).unwrap();
            b.set_attr(&gone, &SetAttr { size: Some(100), ..SetAttr::default() }, &cred).unwrap();
        }),
    ]);
    close(fs, &*device, "removal");
}

#[test]
fn removing_and_freeing() {
    explore(removal, INLINE, Mutant::None, 150);
}

/// The filesystem is frozen while it is remounted: as long as it is frozen the image says that nothing is under way, and stays as it
/// is.
fn frozen_beside_a_remount(image: &MemoryImage, mutant: Mutant) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let (a, b) = ((Arc::clone(&fs), Arc::clone(&device)), Arc::clone(&fs));
    together(vec![
        Box::new(move || {
            let ((fs, device), cred) = (a, Credentials::root());
            fs.freeze(&cred).unwrap();
            let frozen = device.to_bytes();
            let sb = Superblock::read(&frozen[1024..2048]).unwrap();
            assert!(!sb.features().incompat.contains(Incompat::RECOVER), "frozen, and said to be in use");
            thread::yield_now();
            assert!(frozen == device.to_bytes(), "written to while it is frozen");
            fs.thaw(&cred).unwrap();
        }),
        Box::new(move || {
            for options in ["ro", "rw"] {
                match b.remount(&extant::MountOptions::parse(options).unwrap()) {
                    Ok(()) | Err(extant::Error::Busy) => {}
                    Err(e) => panic!("remount {options}: {e}"),
                }
            }
        }),
    ]);
    close(fs, &*device, "frozen beside a remount");
}

#[test]
fn freezing_beside_a_remount() {
    explore(frozen_beside_a_remount, PLAIN, Mutant::None, 100);
}

#[test]
fn mutant_remounted_while_it_is_being_frozen() {
    explore(frozen_beside_a_remount, PLAIN, Mutant::FreezeAlone, 100);
}

/// Three directories, each in the next, with a `..` that says so; the first is in the root too.
fn circle() -> MemoryImage {
    let dir = scratch();
    let path = dir.join("image");
    std::fs::write(&path, image(PLAIN).to_bytes()).unwrap();
    let forge =
        ["mkdir /x", "mkdir /x/y", "mkdir /x/y/z", "ln /x /x/y/z/x", "unlink /x/..", "ln /x/y/z /x/.."];
    extant_testkit::oracle::debugfs_write(&path, &forge);
    MemoryImage::from_bytes(&std::fs::read(path).unwrap())
}

/// A tree is removed from below while somebody else, who has found the lock of a directory in it taken by a third, looks what is above:
/// what is gone by then is no damage.
fn removed_from_below(image: &MemoryImage, mutant: Mutant) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let cred = Credentials::root();
    let root = fs.root().unwrap();
    let above = fs.mkdir(&root, b"p", 0o755, &cred).unwrap();
    let dir = fs.mkdir(&above, b"q", 0o755, &cred).unwrap();
    let below = fs.mkdir(&dir, b"r", 0o755, &cred).unwrap();
    let (a, b, c) = ((Arc::clone(&fs), dir.clone()), Arc::clone(&fs), Arc::clone(&fs));
    together(vec![
        Box::new(move || {
            let (fs, cred) = (c, Credentials::root());
            let found = fs.lookup(&below, b"none", &cred);
            assert!(matches!(found, Err(Error::NotFound)), "{:?}", found.err());
        }),
        Box::new(move || {
            let ((fs, dir), cred) = (a, Credentials::root());
            let done = fs.rmdir(&dir, b"r", &cred);
            assert!(matches!(done, Ok(_) | Err(Error::NotFound)), "{:?}", done.err());
        }),
        Box::new(move || {
            let (fs, cred) = (b, Credentials::root());
            let done = fs.rmdir(&dir, b"r", &cred);
            assert!(matches!(done, Ok(_) | Err(Error::NotFound)), "{:?}", done.err());
            drop((done, dir));
            drop(fs.rmdir(&above, b"q", &cred).unwrap());
            drop(above);
            drop(fs.rmdir(&root, b"p", &cred).unwrap());
        }),
    ]);
    close(fs, &*device, "directories that are removed from below");
}

#[test]
fn removing_directories_from_below() {
    explore(removed_from_below, PLAIN, Mutant::None, 300);
}

#[test]
fn mutant_what_is_above_what_is_gone_is_damage() {
    explore(removed_from_below, PLAIN, Mutant::GoneAbove, 300);
}

/// Each of three threads holds one directory of the circle and wants the next: nobody waits for ever, and what is refused is so for
/// the damage.
fn in_a_circle(image: &MemoryImage, mutant: Mutant) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let dirs = ["x", "x/y", "x/y/z"].map(|path| find(&fs, path));
    let names: [&[u8]; 3] = [b"y", b"z", b"x"];
    let tasks =
        dirs.into_iter().zip(names).enumerate().map(|(who, (dir, name))| -> Box<dyn FnOnce() + Send> {
            let fs = Arc::clone(&fs);
            Box::new(move || {
                let cred = Credentials::root();
                let done = if who == 2 {
                    fs.rename(&dir, name, &dir, b"w", RenameFlags::default(), &cred)
                } else {
                    fs.rmdir(&dir, name, &cred).map(Some)
                };
                match done {
                    Ok(_) => assert_eq!(who, 2, "a directory with names went"),
                    Err(Error::NotEmpty) => assert_ne!(who, 2),
                    Err(e) => assert!(e.is_corruption(), "{e}"),
                }
            })
        });
    together(tasks.collect());
    fs.unmount().unwrap();
}

#[test]
fn removing_and_renaming_in_a_circle_of_directories() {
    need!(tools(&["mke2fs", "debugfs"]));
    explore_on(circle(), in_a_circle, Mutant::None, 150);
}

#[test]
fn mutant_waiting_in_a_circle_of_directories() {
    need!(tools(&["mke2fs", "debugfs"]));
    explore_on(circle(), in_a_circle, Mutant::RootAbove, 150);
}
