use std::sync::Arc;

use extant_device::BlockDevice as _;
use extant_format::mmp::MmpSeq;
use extant_testkit::sim::SimDevice;
use extant_testkit::{env, need, oracle, scratch};

use crate::{Credentials, Error, Filesystem, Setup};

/// While it is frozen nothing is written, and a thaw looks whether somebody else has taken the filesystem.
#[test]
fn nobody_counts_while_it_is_frozen() {
    need!(env::tools(&["mke2fs"]));
    let dir = scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 16 << 20, "-t ext4 -O mmp -E mmp_update_interval=1");
    let device = SimDevice::from_file(&image);
    let fs = Filesystem::open(Arc::clone(&device) as _, Setup::default()).unwrap();
    let cred = Credentials::root();
    let block = fs.mmp_block().unwrap();
    let seq = || block.lock().read().unwrap().seq;
    // What the thread does at each interval.
    let keep = || block.lock().keep();

    let before = seq();
    keep().unwrap();
    assert_ne!(seq(), before);
    fs.freeze(&cred).unwrap();
    let frozen = device.content().digest();
    keep().unwrap();
    assert!(frozen == device.content().digest(), "written to while it is frozen");
    let before = seq();
    fs.thaw(&cred).unwrap();
    assert_ne!(seq(), before, "a thaw counts");

    fs.freeze(&cred).unwrap();
    let (at, theirs) = {
        let block = block.lock();
        let mut record = block.read().unwrap();
        record.seq = MmpSeq::InUse(7);
        let mut bytes = [0; 1024];
        device.read_at(block.offset(), &mut bytes).unwrap();
        record.encode(block.block, &mut bytes, &block.csum).unwrap();
        (block.offset(), bytes)
    };
    device.corrupt(at, |bytes| bytes.copy_from_slice(&theirs), 1024);
    let taken = device.content().digest();
    keep().unwrap();
    assert!(matches!(fs.thaw(&cred), Err(Error::Incompatible(_))));
    assert!(matches!(fs.sync(), Err(Error::Shutdown)));
    assert!(fs.unmount().is_err());
    drop(fs);
    assert!(taken == device.content().digest(), "written to although somebody else has it");
}
