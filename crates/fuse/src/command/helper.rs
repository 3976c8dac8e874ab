//! `mount.fuse.extant`: what mount(8) calls for the types `fuse.extant` and `extant`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::{CommandError, MountArgs, Options, mount};

const USAGE: &str = "usage: mount.fuse.extant DEVICE DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]";

/// Runs the helper with mount(8)'s arguments (without the program's name).
pub fn mount_helper(args: &[OsString]) -> Result<(), CommandError> {
    let Some(call) = parse(args)? else { return Ok(()) };
    mount(&call)
}

/// The arguments; `None` if nothing is to be mounted (`-f`, a try).
fn parse(args: &[OsString]) -> Result<Option<MountArgs>, CommandError> {
    let usage = || CommandError::usage(USAGE);
    let mut places: Vec<PathBuf> = Vec::new();
    let mut call = MountArgs::default();
    let mut fake = false;
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let text = word.to_str().unwrap_or("");
        match text.strip_prefix('-') {
            Some(letters) if !letters.is_empty() => {
                for letter in letters.chars() {
                    match letter {
                        'o' => call.options.push(text_of(words.next().ok_or_else(usage)?)?),
                        // A namespace and a type are mount(8)'s affair.
                        't' | 'N' => drop(words.next().ok_or_else(usage)?),
                        'f' => fake = true,
                        's' | 'n' | 'v' => {}
                        _ => return Err(usage()),
                    }
                }
            }
            _ => places.push(word.into()),
        }
    }
    let [image, dir] = places.try_into().map_err(|_| usage())?;
    (call.image, call.dir) = (image, dir);
    if fake {
        Options::parse(&call.options.join(","))?;
        return Ok(None);
    }
    Ok(Some(call))
}

fn text_of(word: &OsStr) -> Result<String, CommandError> {
    word.to_str().map(str::to_owned).ok_or_else(|| CommandError::usage("mount options are not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::parse;

    fn words(line: &str) -> Vec<std::ffi::OsString> {
        line.split(' ').map(Into::into).collect()
    }

    #[test]
    fn calls_of_mount() {
        let call = parse(&words("/dev/loop0 /mnt -o rw,noatime -t fuse.extant -v")).unwrap().unwrap();
        assert_eq!(call.image.to_str(), Some("/dev/loop0"));
        assert_eq!(call.dir.to_str(), Some("/mnt"));
        assert_eq!(call.options, ["rw,noatime"]);
        assert!(parse(&words("/dev/loop0 /mnt -fo ro")).unwrap().is_none());
        for wrong in ["/dev/loop0", "/dev/loop0 /mnt -o", "/dev/loop0 /mnt /mnt2", "/dev/loop0 /mnt -x"] {
            assert_eq!(parse(&words(wrong)).unwrap_err().status, super::super::status::USAGE, "{wrong}");
        }
    }
}
