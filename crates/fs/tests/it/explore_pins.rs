//! Pins that are made beside what ends the right to store, under the exploring runtime: either there is a pin, and it is refused, or there is
//! none. (Without the gate: `holds::a_pin_beside_the_end` of `extant-vm`.)

use std::sync::{Arc, Mutex};

use extant::{
    Credentials, Error, Fault, Filesystem, MapAdvice, MapView, MountOptions, Mutant, NewInode, OpenFile,
    OpenMode, Result,
};
use extant_device::{MemoryDevice, MemoryImage};

use crate::explore::{PLAIN, close, explore, open, together};

/// A pin beside `end`.
fn pinned_beside(image: &MemoryImage, mutant: Mutant, end: fn(&Filesystem) -> Result<()>) {
    let device = Arc::new(MemoryDevice::from_image(image));
    let fs = open(&device, mutant);
    let cred = Credentials::root();
    let inode = fs.mknod(&fs.root().unwrap(), b"m", &NewInode::file(0o600), &cred).unwrap();
    let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
    let file = OpenFile::new(&fs, &inode, mode, &cred).unwrap();
    file.write_at(0, &[1; 4096]).unwrap();
    let mmu = fs.map_simulated(&inode).unwrap();
    let view = MapView { id: mmu.map(), pages: 0..1, advice: MapAdvice::Random, sync: false };
    let pin = Arc::new(Mutex::new(None));
    let ended = Arc::new(Mutex::new(None));
    let (a, b) = ((Arc::clone(&fs), Arc::clone(&pin)), (Arc::clone(&fs), Arc::clone(&ended)));
    together(vec![
        Box::new(move || {
            let (fs, pin) = a;
            match fs.pin_simulated(&inode, &view, 0..1) {
                Ok(made) => *pin.lock().unwrap() = Some(made),
                Err(Fault::Parked | Fault::Sigbus) => {}
                Err(fault) => panic!("{fault:?}"),
            }
        }),
        Box::new(move || {
            let (fs, ended) = b;
            *ended.lock().unwrap() = Some(end(&fs));
        }),
    ]);
    let (pin, ended) = (pin.lock().unwrap().take(), ended.lock().unwrap().take().unwrap());
    match (&pin, &ended) {
        (Some(_), Err(Error::Busy)) | (None, Ok(())) => {}
        _ => panic!("a pin: {}, and the end of its right to store: {ended:?}", pin.is_some()),
    }
    drop((pin, file));
    match ended {
        // It is the mount's end that was refused, or it is there still.
        Err(_) => close(fs, &*device, "a pin beside the end"),
        Ok(()) => fs.unmount().unwrap(),
    }
}

fn beside_unmount(image: &MemoryImage, mutant: Mutant) {
    pinned_beside(image, mutant, Filesystem::unmount);
}

fn beside_remount(image: &MemoryImage, mutant: Mutant) {
    pinned_beside(image, mutant, |fs| fs.remount(&MountOptions::parse("ro").unwrap()));
}

#[test]
fn a_pin_beside_an_unmount() {
    explore(beside_unmount, PLAIN, Mutant::None, 200);
}

#[test]
fn a_pin_beside_a_remount_for_reading() {
    explore(beside_remount, PLAIN, Mutant::None, 200);
}

#[test]
fn mutant_a_remount_that_counts_pins_once() {
    explore(beside_remount, PLAIN, Mutant::PinsCounted, 200);
}
