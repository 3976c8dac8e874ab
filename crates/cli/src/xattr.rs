//! `xattr`: extended attributes in an image.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;

use extant::{InodeRef, XattrSet};
use serde_json::{Value, json};

use crate::fail::{At as _, Failure, Outcome};
use crate::image::{ImageArgs, ReadArgs};
use crate::out::Out;
use crate::show;
use crate::volume::Volume;

/// Show or change extended attributes
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Show names and values
    Ls {
        #[command(flatten)]
        image: ReadArgs,
        /// What to look at; symbolic links themselves
        #[arg(required = true)]
        paths: Vec<OsString>,
        /// One JSON array of objects, each with its path and its names and values in hexadecimal
        #[arg(long)]
        json: bool,
    },
    /// Write one value to standard output as it is
    Get {
        #[command(flatten)]
        image: ReadArgs,
        path: OsString,
        /// Full name, such as user.comment
        name: OsString,
    },
    /// Set one value
    Set {
        #[command(flatten)]
        image: ImageArgs,
        path: OsString,
        /// Full name, such as user.comment
        name: OsString,
        /// The value; standard input if it is not given
        value: Option<OsString>,
    },
    /// Remove attributes
    Rm {
        #[command(flatten)]
        image: ImageArgs,
        path: OsString,
        #[arg(required = true)]
        names: Vec<OsString>,
    },
}

/// `extant xattr`
pub(crate) fn run(args: &Args) -> Outcome {
    match &args.command {
        Command::Ls { image, paths, json } => list(image, paths, *json),
        Command::Get { image, path, name } => {
            let volume = Volume::read(image)?;
            let inode = volume.resolve_link(path.as_bytes())?;
            let mut out = Out::new();
            out.bytes(&value_of(&volume, &inode, path.as_bytes(), name.as_bytes())?)?;
            out.finish()?;
            volume.close()
        }
        Command::Set { image, path, name, value } => {
            let value = match value {
                Some(value) => value.as_bytes().to_vec(),
                None => standard_input()?,
            };
            let volume = Volume::write(image)?;
            let inode = volume.resolve_link(path.as_bytes())?;
            let set = volume.fs.set_xattr(&inode, name.as_bytes(), &value, XattrSet::Any, &volume.cred);
            set.at(path.as_bytes())?;
            volume.close()
        }
        Command::Rm { image, path, names } => {
            let volume = Volume::write(image)?;
            let inode = volume.resolve_link(path.as_bytes())?;
            for name in names {
                volume.fs.remove_xattr(&inode, name.as_bytes(), &volume.cred).at(path.as_bytes())?;
            }
            volume.close()
        }
    }
}

fn list(image: &ReadArgs, paths: &[OsString], json: bool) -> Outcome {
    let volume = Volume::read(image)?;
    let mut out = Out::new();
    let mut objects = Vec::new();
    for path in paths {
        let path = path.as_bytes();
        let inode = volume.resolve_link(path)?;
        let mut values = json!({});
        if paths.len() > 1 && !json {
            out.line(&format!("{}:", show::name(path)))?;
        }
        for name in volume.xattr_names(&inode, path)? {
            let value = value_of(&volume, &inode, path, &name)?;
            if json {
                values[String::from_utf8_lossy(&name).into_owned()] = json!(show::hex(&value));
                continue;
            }
            let plain = std::str::from_utf8(&value).is_ok_and(|text| !text.chars().any(char::is_control));
            let text = if plain {
                format!("\"{}\"", show::name(&value))
            } else {
                format!("0x{}", show::hex(&value))
            };
            out.line(&format!("{}={text}", show::name(&name)))?;
        }
        let mut object = json!({ "path": "", "xattrs": values });
        show::json_name(&mut object, "path", path);
        objects.push(object);
    }
    if json {
        out.json(&Value::Array(objects))?;
    }
    out.finish()?;
    volume.close()
}

fn value_of(volume: &Volume, inode: &InodeRef, path: &[u8], name: &[u8]) -> Outcome<Vec<u8>> {
    volume.fs.get_xattr(inode, name, &volume.cred).at(path)
}

fn standard_input() -> Outcome<Vec<u8>> {
    let mut value = Vec::new();
    // One byte more than any attribute may have, so that too much is noticed, not cut.
    let limit = (64 << 10) + 1;
    let read = std::io::stdin().take(limit).read_to_end(&mut value);
    read.map_err(|err| Failure::new(format!("standard input: {err}")))?;
    Ok(value)
}
