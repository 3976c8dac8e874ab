//! A tar archive (plain, gzip, zstd or xz) as source.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use extant_format::inode::FileType;
use extant_mkfs::MkfsError;
use extant_mkfs::archive::{Data, Member, MemberKind, Members, Unpacked};

use super::{Added, Content, Meta, Sink, Source, What, is_safe_name};
use crate::fail::{Failure, Outcome, show_path};

/// An archive to read, compressed or not: its first bytes say.
pub(crate) struct ArchiveSource {
    members: Members<Unpacked<'static>>,
    /// For messages.
    name: String,
}

impl ArchiveSource {
    /// The archive at `path`; `-` is standard input.
    pub(crate) fn open(path: &Path) -> Outcome<Self> {
        let (raw, name): (Box<dyn Read>, _) = if path.as_os_str() == "-" {
            (Box::new(io::stdin()), "standard input".to_owned())
        } else {
            let file = File::open(path).map_err(|err| Failure::host(path, &err))?;
            (Box::new(file), path.display().to_string())
        };
        let reader = Unpacked::new(raw).map_err(|err| Failure::new(format!("{name}: {err}")))?;
        Ok(Self { members: Members::new(reader, Path::new(&name), true), name })
    }
}

impl Source for ArchiveSource {
    fn feed(&mut self, sink: &mut dyn Sink) -> Outcome {
        let name = self.name.clone();
        let mut count = 0_u64;
        loop {
            let member = match self.members.next_member() {
                Ok(Some(member)) => member,
                Ok(None) => break,
                Err(MkfsError::Source { source, .. }) if count == 0 => {
                    let what = format!("{name}: not a tar archive (plain, gzip, zstd or xz): {source}");
                    return Err(Failure::new(what));
                }
                Err(err @ MkfsError::Member { .. }) => return Err(Failure::new(format!("{name}: {err}"))),
                Err(err) => return Err(Failure::new(err.to_string())),
            };
            count += 1;
            // An image, which is where archives go, can have all of it.
            let _: Added = self.hand_over(member, sink)?;
        }
        if count == 0 {
            return Err(Failure::new(format!("{name}: an archive without entries, or no tar archive")));
        }
        Ok(())
    }
}

impl ArchiveSource {
    fn hand_over(&mut self, member: Member, sink: &mut dyn Sink) -> Outcome<Added> {
        let name = &self.name;
        let path = relative(&member.path, name)?;
        let meta = Meta {
            mode: u32::from(member.mode),
            uid: member.uid,
            gid: member.gid,
            atime: member.atime.unwrap_or(member.mtime),
            mtime: member.mtime,
            xattrs: member.xattrs,
        };
        let what = match member.kind {
            MemberKind::Directory => What::Dir,
            MemberKind::Symlink => What::Symlink(member.link),
            MemberKind::Link => What::Link(relative(&member.link, name)?),
            MemberKind::Fifo => What::Special(FileType::Fifo, 0, 0),
            MemberKind::Char(number) => What::Special(FileType::CharDevice, number.major, number.minor),
            MemberKind::Block(number) => What::Special(FileType::BlockDevice, number.major, number.minor),
            MemberKind::Regular => {
                let size = member.size;
                let whole = || (size > 0).then_some(Data { offset: 0, len: size, before: 0 });
                let ranges = member.data.unwrap_or_else(|| whole().into_iter().collect());
                let mut content = Stream { members: &mut self.members, size, ranges, at: 0, name };
                return sink.add(&path, &meta, What::File(&mut content));
            }
        };
        sink.add(&path, &meta, what)
    }
}

/// An entry's path without leading `/` and `./`; one with `..` is refused.
fn relative(path: &[u8], archive: &str) -> Outcome<Vec<u8>> {
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
    if let Some(bad) = names.iter().find(|n| !is_safe_name(n)) {
        let what = format!("{archive}: the path {} with {}", show_path(path), crate::show::name(bad));
        return Err(Failure::new(what).hint("it would lead out of the target; nothing of it was written"));
    }
    Ok(names.join(&b'/'))
}

/// A file's content in an archive: its data ranges come once, in order.
struct Stream<'a> {
    members: &'a mut Members<Unpacked<'static>>,
    size: u64,
    ranges: Vec<Data>,
    /// Bytes of data that were read.
    at: u64,
    name: &'a str,
}

impl Content for Stream<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn data(&mut self, from: u64) -> Outcome<Option<Range<u64>>> {
        let next = self.ranges.partition_point(|d| d.offset + d.len <= from);
        Ok(self.ranges.get(next).map(|d| d.offset.max(from)..d.offset + d.len))
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Outcome {
        let range = self.ranges[..self.ranges.partition_point(|d| d.offset <= offset)].last();
        let at = range.map(|d| d.before + (offset - d.offset));
        assert_eq!(at, Some(self.at), "an archive is read in order");
        self.at += buf.len() as u64;
        self.members.read_exact(buf).map_err(|err| match err.kind() {
            io::ErrorKind::UnexpectedEof => {
                Failure::new(format!("{}: the archive ends within a member", self.name))
            }
            _ => Failure::new(format!("{}: {err}", self.name)),
        })
    }
}
