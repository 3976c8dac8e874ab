//! The text form of operations.

use std::fmt;
use std::str::FromStr;

use super::{Op, Rename, Special};

/// A line that is no operation.
#[derive(Clone, Debug, thiserror::Error)]
#[error("`{line}`: {what}")]
pub struct ParseError {
    line: String,
    what: String,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mkdir { path, mode } => write!(f, "mkdir {path} {mode:o}"),
            Self::Create { path, mode } => write!(f, "create {path} {mode:o}"),
            Self::Symlink { target, path } => write!(f, "symlink {target} {path}"),
            Self::Link { old, new } => write!(f, "link {old} {new}"),
            Self::Mknod { path, node: Special::Fifo } => write!(f, "mknod {path} fifo"),
            Self::Mknod { path, node: Special::Socket } => write!(f, "mknod {path} sock"),
            Self::Mknod { path, node: Special::Char(major, minor) } => {
                write!(f, "mknod {path} {major}:{minor}")
            }
            Self::Unlink { path } => write!(f, "unlink {path}"),
            Self::Rmdir { path } => write!(f, "rmdir {path}"),
            Self::Rename { old, new, how } => {
                let how = match how {
                    Rename::Plain => "",
                    Rename::NoReplace => " noreplace",
                    Rename::Exchange => " exchange",
                };
                write!(f, "rename {old} {new}{how}")
            }
            Self::Chmod { path, mode } => write!(f, "chmod {path} {mode:o}"),
            Self::Chown { path, uid, gid } => write!(f, "chown {path} {uid} {gid}"),
            Self::Write { path, offset, len, seed } => write!(f, "write {path} {offset} {len} {seed}"),
            Self::Append { path, len, seed } => write!(f, "append {path} {len} {seed}"),
            Self::Store { path, offset, len, seed } => write!(f, "store {path} {offset} {len} {seed}"),
            Self::Persist { path, offset, len, seed } => write!(f, "persist {path} {offset} {len} {seed}"),
            Self::Truncate { path, size } => write!(f, "truncate {path} {size}"),
            Self::Utimes { path, seconds, nanoseconds } => write!(f, "utimes {path} {seconds} {nanoseconds}"),
            Self::Fallocate { path, offset, len, keep_size } => {
                write!(f, "fallocate {path} {offset} {len}{}", keep(*keep_size))
            }
            Self::Punch { path, offset, len } => write!(f, "punch {path} {offset} {len}"),
            Self::Zero { path, offset, len, keep_size } => {
                write!(f, "zero {path} {offset} {len}{}", keep(*keep_size))
            }
            Self::Collapse { path, offset, len } => write!(f, "collapse {path} {offset} {len}"),
            Self::Insert { path, offset, len } => write!(f, "insert {path} {offset} {len}"),
            Self::Setxattr { path, name, len, seed } => write!(f, "setxattr {path} {name} {len} {seed}"),
            Self::Removexattr { path, name } => write!(f, "removexattr {path} {name}"),
            Self::Move { path } => write!(f, "move {path}"),
            Self::Open { path, handle } => write!(f, "open {path} {handle}"),
            Self::Close { handle } => write!(f, "close {handle}"),
            Self::Fsync { path } => write!(f, "fsync {path}"),
            Self::Fdatasync { path } => write!(f, "fdatasync {path}"),
            Self::Msync { path } => write!(f, "msync {path}"),
            Self::Sync => f.write_str("sync"),
        }
    }
}

const fn keep(keep_size: bool) -> &'static str {
    if keep_size { " keep" } else { "" }
}

impl FromStr for Op {
    type Err = ParseError;

    fn from_str(line: &str) -> Result<Self, ParseError> {
        let mut words = Words { line, words: line.split_whitespace() };
        let op = words.op()?;
        match words.words.next() {
            None => Ok(op),
            Some(word) => Err(words.error(format!("{word} is too much"))),
        }
    }
}

struct Words<'a> {
    line: &'a str,
    words: std::str::SplitWhitespace<'a>,
}

impl Words<'_> {
    fn op(&mut self) -> Result<Op, ParseError> {
        Ok(match self.word("an operation")?.as_str() {
            "mkdir" => Op::Mkdir { path: self.path()?, mode: self.octal()? },
            "create" => Op::Create { path: self.path()?, mode: self.octal()? },
            "symlink" => Op::Symlink { target: self.path()?, path: self.path()? },
            "link" => Op::Link { old: self.path()?, new: self.path()? },
            "mknod" => Op::Mknod { path: self.path()?, node: self.special()? },
            "unlink" => Op::Unlink { path: self.path()? },
            "rmdir" => Op::Rmdir { path: self.path()? },
            "rename" => Op::Rename { old: self.path()?, new: self.path()?, how: self.how()? },
            "chmod" => Op::Chmod { path: self.path()?, mode: self.octal()? },
            "chown" => Op::Chown { path: self.path()?, uid: self.number()?, gid: self.number()? },
            "write" => Op::Write {
                path: self.path()?,
                offset: self.number()?,
                len: self.number()?,
                seed: self.number()?,
            },
            "append" => Op::Append { path: self.path()?, len: self.number()?, seed: self.number()? },
            "store" => Op::Store {
                path: self.path()?,
                offset: self.number()?,
                len: self.number()?,
                seed: self.number()?,
            },
            "persist" => Op::Persist {
                path: self.path()?,
                offset: self.number()?,
                len: self.number()?,
                seed: self.number()?,
            },
            "move" => Op::Move { path: self.path()? },
            "truncate" => Op::Truncate { path: self.path()?, size: self.number()? },
            "utimes" => {
                Op::Utimes { path: self.path()?, seconds: self.number()?, nanoseconds: self.number()? }
            }
            "fallocate" => Op::Fallocate {
                path: self.path()?,
                offset: self.number()?,
                len: self.number()?,
                keep_size: self.keep()?,
            },
            "punch" => Op::Punch { path: self.path()?, offset: self.number()?, len: self.number()? },
            "zero" => Op::Zero {
                path: self.path()?,
                offset: self.number()?,
                len: self.number()?,
                keep_size: self.keep()?,
            },
            "collapse" => Op::Collapse { path: self.path()?, offset: self.number()?, len: self.number()? },
            "insert" => Op::Insert { path: self.path()?, offset: self.number()?, len: self.number()? },
            "setxattr" => Op::Setxattr {
                path: self.path()?,
                name: self.path()?,
                len: self.number()?,
                seed: self.number()?,
            },
            "removexattr" => Op::Removexattr { path: self.path()?, name: self.path()? },
            "open" => Op::Open { path: self.path()?, handle: self.handle()? },
            "close" => Op::Close { handle: self.handle()? },
            "fsync" => Op::Fsync { path: self.path()? },
            "fdatasync" => Op::Fdatasync { path: self.path()? },
            "msync" => Op::Msync { path: self.path()? },
            "sync" => Op::Sync,
            other => return Err(self.error(format!("no operation {other}"))),
        })
    }

    fn error(&self, what: String) -> ParseError {
        ParseError { line: self.line.to_owned(), what }
    }

    fn word(&mut self, what: &str) -> Result<String, ParseError> {
        self.words.next().map(str::to_owned).ok_or_else(|| self.error(format!("{what} is missing")))
    }

    fn path(&mut self) -> Result<String, ParseError> {
        self.word("a path or name")
    }

    fn handle(&mut self) -> Result<String, ParseError> {
        let word = self.word("a handle")?;
        if word.starts_with('@') {
            Ok(word)
        } else {
            Err(self.error(format!("{word} does not begin with @")))
        }
    }

    fn number<T: FromStr>(&mut self) -> Result<T, ParseError> {
        let word = self.word("a number")?;
        word.parse().map_err(|_| self.error(format!("{word} is no number here")))
    }

    fn octal(&mut self) -> Result<u32, ParseError> {
        let word = self.word("a mode")?;
        u32::from_str_radix(&word, 8).map_err(|_| self.error(format!("{word} is no mode")))
    }

    fn special(&mut self) -> Result<Special, ParseError> {
        let word = self.word("a kind")?;
        match word.as_str() {
            "fifo" => return Ok(Special::Fifo),
            "sock" => return Ok(Special::Socket),
            _ => {}
        }
        let numbers = word.split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        numbers
            .map(|(major, minor)| Special::Char(major, minor))
            .ok_or_else(|| self.error(format!("{word} is neither fifo nor sock nor MAJOR:MINOR")))
    }

    fn how(&mut self) -> Result<Rename, ParseError> {
        match self.words.next() {
            None => Ok(Rename::Plain),
            Some("noreplace") => Ok(Rename::NoReplace),
            Some("exchange") => Ok(Rename::Exchange),
            Some(other) => Err(self.error(format!("no way to rename {other}"))),
        }
    }

    fn keep(&mut self) -> Result<bool, ParseError> {
        match self.words.next() {
            None => Ok(false),
            Some("keep") => Ok(true),
            Some(other) => Err(self.error(format!("{other} is not `keep`"))),
        }
    }
}
