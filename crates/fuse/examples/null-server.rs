//! Mounts the null server: `null-server DIR [--writeback] [--pin] [--shared-fd] [--ttl SECONDS] [--readers N]`.
//! Serves until it is unmounted; prints `ready` once it is mounted.

use std::error::Error;

use extant_fuse::SessionOptions;
use extant_fuse::null::{NullOptions, NullServer};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args
        .next()
        .ok_or("usage: null-server DIR [--writeback] [--pin] [--shared-fd] [--ttl S] [--readers N]")?;
    let mut null = NullOptions::default();
    let mut session = SessionOptions::default();
    while let Some(word) = args.next() {
        match word.as_str() {
            "--writeback" => null.writeback_cache = true,
            "--pin" => session.pin = true,
            "--shared-fd" => session.clone_fd = false,
            "--ttl" => null.ttl = args.next().ok_or("--ttl needs seconds")?.parse()?,
            "--readers" => session.readers = args.next().ok_or("--readers needs a number")?.parse()?,
            other => return Err(format!("unknown argument `{other}`").into()),
        }
    }
    NullServer::mount_and_run(null, session, dir.as_ref(), || println!("ready"))?;
    Ok(())
}
