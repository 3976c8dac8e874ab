use extant_device::MemoryDevice;
use extant_testkit::env::{scratch, tools};
use extant_testkit::need;
use extant_testkit::oracle::mke2fs;

use crate::{Credentials, Filesystem, NewInode, Setup};

/// Two inodes wait for the evictor; the first one's record in the list leads to the second. When that is gone, whatever is
/// written of the first one must not lead to it any more: its blocks may take several transactions, and a crash between
/// them would leave a list into nowhere.
#[test]
fn an_orphan_on_its_way_out_does_not_lead_to_one_that_is_gone() {
    need!(tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    mke2fs(&image, 8 << 20, "-t ext4 -O ^orphan_file");
    let device = std::sync::Arc::new(MemoryDevice::from_bytes(&std::fs::read(&image).unwrap()));
    let fs = Filesystem::open(device, Setup::default()).unwrap();
    // No evictor: the test is it.
    fs.stop_threads();
    let (root, cred) = (fs.root().unwrap(), Credentials::root());
    for name in [b"one", b"two"] {
        drop(fs.mknod(&root, name, &NewInode::file(0o644), &cred).unwrap());
        drop(fs.unlink(&root, name, &cred).unwrap());
    }
    let queue: Vec<_> = fs.icache.queue.lock().dead.drain(..).collect();
    let [one, two] = &queue[..] else { panic!("two are dead") };
    let stored = |fs: &Filesystem| {
        let buf = fs.cache.read(two.table.0).unwrap();
        buf.with(|bytes| fs.inode_format.read(two.ino, &bytes[two.table.1..]).unwrap().dtime)
    };
    assert_eq!(stored(&fs), one.ino.0);
    fs.evict(one);
    fs.icache.evicted(one.ino);
    assert_eq!(stored(&fs), 0);
    let mut handle = fs.journal.start(4).unwrap();
    fs.write_inode(&mut handle, two).unwrap();
    handle.finish().unwrap();
    assert_eq!(stored(&fs), 0, "the list leads to an inode that was freed");
    fs.evict(two);
}
