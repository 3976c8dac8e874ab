//! Every device against a plain array, and what wrappers add.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use extant_device::{
    BlockDevice, Counting, Counts, FileDevice, MemSlice, MemoryDevice, MemoryImage, Overlay, ReadOnly, Window,
};

use crate::common::Random;

const SIZE: usize = 300_000;

/// Random operations on `device` and on an array, compared at each read and at the end.
fn behaves_like_memory(device: &dyn BlockDevice, model: &mut [u8], discard_zeroes: bool) {
    assert_eq!(device.size(), model.len() as u64);
    let mut random = Random::new();
    for step in 0..2000_u64 {
        let at = random.below(model.len() as u64) as usize;
        let most = [100, 5000, 150_000][random.below(3) as usize];
        let len = (random.below(most) as usize).min(model.len() - at);
        let range = at..at + len;
        let data: Vec<u8> = (0..len).map(|i| (step as usize * 31 + i) as u8).collect();
        let cut = random.below(len as u64 + 1) as usize;
        let mut got = vec![0; len];
        match random.below(9) {
            0 => {
                device.write_at(at as u64, &data).expect("write");
                model[range].copy_from_slice(&data);
            }
            1 => {
                let bufs = [IoSlice::new(&data[..cut]), IoSlice::new(&[]), IoSlice::new(&data[cut..])];
                device.write_vectored_at(at as u64, &bufs).expect("vectored write");
                model[range].copy_from_slice(&data);
            }
            2 => {
                let mut copy = data.clone();
                let (a, b) = copy.split_at_mut(cut);
                device
                    .write_mem_at(at as u64, &[MemSlice::from_mut(a), MemSlice::from_mut(b)])
                    .expect("write");
                model[range].copy_from_slice(&data);
            }
            3 => {
                device.write_zeroes(at as u64, len as u64).expect("zeroes");
                model[range].fill(0);
            }
            4 if discard_zeroes => {
                device.discard(at as u64, len as u64).expect("discard");
                model[range].fill(0);
            }
            4 | 5 => {
                device.read_at(at as u64, &mut got).expect("read");
                assert_eq!(got, model[range], "read of {len} at {at}");
            }
            6 => {
                let (a, b) = got.split_at_mut(cut);
                device
                    .read_vectored_at(at as u64, &mut [IoSliceMut::new(a), IoSliceMut::new(b)])
                    .expect("read");
                assert_eq!(got, model[range], "vectored read of {len} at {at}");
            }
            7 => {
                let (a, b) = got.split_at_mut(cut);
                device.read_mem_at(at as u64, &[MemSlice::from_mut(a), MemSlice::from_mut(b)]).expect("read");
                assert_eq!(got, model[range], "memory read of {len} at {at}");
            }
            _ => device.flush().expect("flush"),
        }
    }
    let mut all = vec![1; model.len()];
    device.read_at(0, &mut all).expect("read all");
    assert!(all == model, "content differs at the end");
}

fn refuses_what_is_outside(device: &dyn BlockDevice) {
    let size = device.size();
    let code = |r: std::io::Result<()>| r.expect_err("outside").raw_os_error();
    assert_eq!(code(device.read_at(size - 1, &mut [0; 2])), Some(5));
    assert_eq!(code(device.read_at(u64::MAX, &mut [0; 2])), Some(5));
    assert_eq!(code(device.write_at(size, &[0])), Some(5));
    assert_eq!(code(device.write_vectored_at(size - 1, &[IoSlice::new(&[0]), IoSlice::new(&[0])])), Some(5));
    assert_eq!(code(device.write_zeroes(size - 1, 2)), Some(5));
    assert_eq!(code(device.discard(1, u64::MAX)), Some(5));
    device.read_at(size, &mut []).expect("nothing at the end is inside");
}

#[test]
fn memory() {
    let device = MemoryDevice::new(SIZE as u64);
    behaves_like_memory(&device, &mut vec![0; SIZE], true);
    refuses_what_is_outside(&device);
    let bytes: Vec<u8> = (0..SIZE).map(|i| (i * 7) as u8).collect();
    assert!(MemoryDevice::from_bytes(&bytes).to_bytes() == bytes);
}

/// An image has what the device held, whatever it and the devices that begin with it do later.
#[test]
fn images_of_memory_stay_as_they_are() {
    // The last piece is shorter than the others, and some of them are zeros.
    let mut bytes = vec![0; 100_001];
    for at in [0, 5_000, 70_000, 100_000] {
        bytes[at] = 7;
    }
    let device = MemoryDevice::from_bytes(&bytes);
    let image = device.image();
    assert!(image.to_bytes() == bytes && MemoryImage::from_bytes(&bytes).to_bytes() == bytes);
    let pieces: usize = image.pieces().map(|(_, piece)| piece.len()).sum();
    assert!(pieces < bytes.len(), "zeros are in memory");
    for (offset, piece) in image.pieces() {
        assert_eq!(piece, &bytes[offset as usize..][..piece.len()]);
    }

    let second = MemoryDevice::from_image(&image);
    device.write_at(4_990, &[8; 20]).unwrap();
    device.discard(65_000, 10_000).unwrap();
    second.write_at(99_999, &[9; 2]).unwrap();
    assert!(image.to_bytes() == bytes);
    let changed = |at: usize, with: &[u8]| {
        let mut all = bytes.clone();
        all[at..at + with.len()].copy_from_slice(with);
        all
    };
    assert!(second.to_bytes() == changed(99_999, &[9; 2]));
    let mut first = changed(4_990, &[8; 20]);
    first[70_000] = 0;
    assert!(device.to_bytes() == first);
    assert!(image.write_at(0, &[1]).is_err() && image.read_at(100_001, &mut [0]).is_err());
}

#[test]
fn image_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let device = FileDevice::create(dir.path().join("image"), SIZE as u64).expect("create");
    behaves_like_memory(&device, &mut vec![0; SIZE], true);
    refuses_what_is_outside(&device);
}

#[test]
fn window() {
    let base = Arc::new(MemoryDevice::new(SIZE as u64 + 3000));
    base.write_at(0, &[0xAA; 1000]).expect("write before");
    base.write_at(SIZE as u64 + 1000, &[0xBB; 2000]).expect("write behind");
    let device = Window::new(base.clone(), 1000, SIZE as u64).expect("inside");
    behaves_like_memory(&device, &mut vec![0; SIZE], true);
    refuses_what_is_outside(&device);
    let all = base.to_bytes();
    assert!(all[..1000].iter().all(|b| *b == 0xAA) && all[SIZE + 1000..].iter().all(|b| *b == 0xBB));
    assert!(Window::new(base.clone(), 3001, SIZE as u64).is_err());
    assert!(Window::new(base.clone(), u64::MAX, 2).is_err());
    assert_eq!(Window::from_offset(base, 3000).expect("inside").size(), SIZE as u64);
}

#[test]
fn overlay_leaves_its_base_alone() {
    let bytes: Vec<u8> = (0..SIZE).map(|i| (i / 1000) as u8).collect();
    let base = Arc::new(MemoryDevice::from_bytes(&bytes));
    let device = Overlay::new(base.clone());
    assert_eq!(device.bytes_held(), 0);
    device.write_at(5000, &[1]).expect("write");
    assert_eq!(device.bytes_held(), 4096);
    let mut model = bytes.clone();
    model[5000] = 1;
    behaves_like_memory(&device, &mut model, false);
    refuses_what_is_outside(&device);
    assert!(base.to_bytes() == bytes, "the base was written");
    device.apply().expect("apply");
    assert!(base.to_bytes() == model, "apply wrote something else");
}

#[test]
fn read_only_refuses_changes() {
    let device = ReadOnly::new(Arc::new(MemoryDevice::new(4096)));
    assert!(device.is_read_only());
    device.read_at(0, &mut [0; 10]).expect("read");
    device.flush().expect("flush");
    for result in [device.write_at(0, &[1]), device.discard(0, 1), device.write_zeroes(0, 1)] {
        assert_eq!(result.expect_err("refused").raw_os_error(), Some(30));
    }
    assert!(device.write_mem_at(0, &[MemSlice::from_mut(&mut [1])]).is_err());
    assert!(device.write_fua_at(0, &[IoSlice::new(&[1])]).is_err());
}

#[test]
fn counting_counts() {
    let device = Counting::new(Arc::new(MemoryDevice::new(1 << 20)));
    device.write_at(0, &[1; 100]).expect("write");
    device.write_vectored_at(0, &[IoSlice::new(&[1; 10]), IoSlice::new(&[1; 20])]).expect("write");
    device.read_mem_at(0, &[MemSlice::from_mut(&mut [0; 7])]).expect("read");
    device.write_fua_at(0, &[IoSlice::new(&[1; 5])]).expect("write");
    device.flush().expect("flush");
    device.discard(0, 10).expect("discard");
    device.write_zeroes(0, 10).expect("zero");
    let want =
        Counts { reads: 1, bytes_read: 7, writes: 3, bytes_written: 135, flushes: 2, discards: 1, zeroes: 1 };
    assert_eq!(device.counts(), want);
}
