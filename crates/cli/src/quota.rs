//! `quota`: usage and limits of users, groups and projects.

use std::fs::File;
use std::io;
use std::path::Path;

use extant::{Dqblk, QuotaGrace, QuotaKind, QuotaLimits};
use extant_fuse::private::{self, QUOTA_ROOM, QuotaEntry, QuotaHead, quota_op};
use serde_json::{Value, json};

use crate::fail::{Failure, OnHost as _, Outcome};
use crate::fallocate::bytes;
use crate::image::{ImageArgs, ReadArgs};
use crate::onmount::{is_on_mount, open};
use crate::out::Out;
use crate::show;
use crate::volume::Volume;

const KINDS: [QuotaKind; 3] = [QuotaKind::User, QuotaKind::Group, QuotaKind::Project];

/// Show what users, groups and projects use and may use, or set limits: of an image, or on a mount of one
///
/// Without a setting: a report, of every id or of one. On a mount one's own numbers are shown to everybody, all else is for root. Limits
/// count on mounts with usrquota, grpquota, prjquota. A limit of 0 is none. SIZE is bytes, or has a suffix as of fallocate; limits of space
/// are kept in KiB.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("kind").args(["user", "group", "project"])))]
pub(crate) struct Args {
    #[command(flatten)]
    image: ReadArgs,
    /// Of users
    #[arg(short, long)]
    user: bool,
    /// Of groups
    #[arg(short, long)]
    group: bool,
    /// Of projects
    #[arg(short = 'P', long)]
    project: bool,
    /// Of this id only, a number
    #[arg(long, requires = "kind")]
    id: Option<u32>,
    /// Set the space that may be passed for the grace time
    #[arg(long, value_name = "SIZE", value_parser = bytes, requires = "id")]
    space_soft: Option<u64>,
    /// Set the most space
    #[arg(long, value_name = "SIZE", value_parser = bytes, requires = "id")]
    space_hard: Option<u64>,
    /// Set the inodes that may be passed for the grace time
    #[arg(long, value_name = "COUNT", requires = "id")]
    inodes_soft: Option<u64>,
    /// Set the most inodes
    #[arg(long, value_name = "COUNT", requires = "id")]
    inodes_hard: Option<u64>,
    /// Set the grace time of space for all ids of the kind
    #[arg(long, value_name = "SECONDS", requires = "kind")]
    space_grace: Option<u32>,
    /// Set the grace time of inodes for all ids of the kind
    #[arg(long, value_name = "SECONDS", requires = "kind")]
    inodes_grace: Option<u32>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// What is asked, of an image or of a mount.
trait Quotas {
    fn on_record(&self) -> Outcome<Vec<QuotaKind>>;
    fn grace(&self, kind: QuotaKind) -> Outcome<QuotaGrace>;
    fn all(&self, kind: QuotaKind) -> Outcome<Vec<(u32, Dqblk)>>;
    fn one(&self, kind: QuotaKind, id: u32) -> Outcome<Dqblk>;
    fn set(&self, kind: QuotaKind, id: u32, limits: QuotaLimits) -> Outcome;
    fn set_grace(&self, kind: QuotaKind, grace: QuotaGrace) -> Outcome;
}

/// `extant quota`
pub(crate) fn run(args: &Args) -> Outcome {
    let path = &args.image.at.image;
    if is_on_mount(path) {
        return work(args, &OnMount { file: open(path).on(path)?, path });
    }
    if args.changes() && args.image.noload {
        return Err(Failure::new(
            "--noload is for reading: a change begins with the recovery of the journal",
        ));
    }
    let volume = if args.changes() { Volume::write(&args.image.at)? } else { Volume::read(&args.image)? };
    work(args, &InImage { volume: &volume, at: &args.image.at })?;
    volume.close()
}

fn work(args: &Args, quotas: &dyn Quotas) -> Outcome {
    let kinds = quotas.on_record()?;
    if kinds.is_empty() {
        let what = format!("{}: no quota is kept in it", args.image.at.image.display());
        return Err(
            Failure::new(what).hint("`tune2fs -O quota` adds it, with the project feature `-Q prjquota`")
        );
    }
    match args.kind() {
        Some(kind) if !kinds.contains(&kind) => {
            let what =
                format!("{}: no quota of {}s is kept in it", args.image.at.image.display(), word(kind));
            Err(Failure::new(what))
        }
        Some(kind) if args.changes() => args.set(kind, quotas),
        Some(kind) => args.report(&[kind], quotas),
        None => args.report(&kinds, quotas),
    }
}

impl Args {
    fn kind(&self) -> Option<QuotaKind> {
        let asked = [self.user, self.group, self.project];
        KINDS.into_iter().zip(asked).find(|(_, asked)| *asked).map(|(kind, _)| kind)
    }

    fn sets_limits(&self) -> bool {
        let set = [self.space_soft, self.space_hard, self.inodes_soft, self.inodes_hard];
        set.iter().any(Option::is_some)
    }

    fn changes(&self) -> bool {
        self.sets_limits() || self.space_grace.is_some() || self.inodes_grace.is_some()
    }

    /// What is not given stays.
    fn set(&self, kind: QuotaKind, quotas: &dyn Quotas) -> Outcome {
        if let Some(id) = self.id.filter(|_| self.sets_limits()) {
            let has = quotas.one(kind, id)?;
            let kib = |size: Option<u64>, has| size.map_or(has, |size| size.div_ceil(1024));
            let limits = QuotaLimits {
                space_hard: kib(self.space_hard, has.bhardlimit),
                space_soft: kib(self.space_soft, has.bsoftlimit),
                inodes_hard: self.inodes_hard.unwrap_or(has.ihardlimit),
                inodes_soft: self.inodes_soft.unwrap_or(has.isoftlimit),
            };
            quotas.set(kind, id, limits)?;
        }
        if self.space_grace.is_some() || self.inodes_grace.is_some() {
            let has = quotas.grace(kind)?;
            let grace = QuotaGrace {
                space: self.space_grace.unwrap_or(has.space),
                inodes: self.inodes_grace.unwrap_or(has.inodes),
            };
            quotas.set_grace(kind, grace)?;
        }
        Ok(())
    }

    fn report(&self, kinds: &[QuotaKind], quotas: &dyn Quotas) -> Outcome {
        let mut out = Out::new();
        let mut object = serde_json::Map::new();
        for &kind in kinds {
            let grace = quotas.grace(kind)?;
            let entries = match self.id {
                Some(id) => vec![(id, quotas.one(kind, id)?)],
                None => quotas.all(kind)?,
            };
            if self.json {
                object.insert(format!("{}s", word(kind)), table(grace, &entries));
            } else {
                print(&mut out, kind, grace, &entries)?;
            }
        }
        if self.json {
            out.json(&Value::Object(object))?;
        }
        out.finish()
    }
}

const fn word(kind: QuotaKind) -> &'static str {
    match kind {
        QuotaKind::User => "user",
        QuotaKind::Group => "group",
        QuotaKind::Project => "project",
    }
}

/// Space in bytes and its limits in KiB, as they are counted.
fn table(grace: QuotaGrace, entries: &[(u32, Dqblk)]) -> Value {
    let entry = |(id, dq): &(u32, Dqblk)| {
        json!({
            "id": id, "space": dq.curspace, "space_soft_kib": dq.bsoftlimit, "space_hard_kib": dq.bhardlimit,
            "space_grace_ends": dq.btime, "inodes": dq.curinodes, "inodes_soft": dq.isoftlimit,
            "inodes_hard": dq.ihardlimit, "inodes_grace_ends": dq.itime,
        })
    };
    let entries: Vec<Value> = entries.iter().map(entry).collect();
    json!({ "space_grace": grace.space, "inodes_grace": grace.inodes, "ids": entries })
}

fn print(out: &mut Out, kind: QuotaKind, grace: QuotaGrace, entries: &[(u32, Dqblk)]) -> Outcome {
    let QuotaGrace { space, inodes } = grace;
    out.line(&format!("{}s; grace times: space {space} s, inodes {inodes} s", word(kind)))?;
    let row = |cells: [&str; 9]| {
        let [id, rest @ ..] = cells;
        let rest: Vec<String> = rest.iter().map(|cell| format!("{cell:>12}")).collect();
        format!("{id:>10} {}", rest.join(" "))
    };
    let head = ["id", "space", "soft", "hard", "grace", "inodes", "soft", "hard", "grace"];
    out.line(&row(head))?;
    for (id, dq) in entries {
        let limit = |kib: u64| if kib == 0 { "-".into() } else { show::size(kib.saturating_mul(1024)) };
        let count = |limit: u64| if limit == 0 { "-".into() } else { limit.to_string() };
        let until = |ends: u64| if ends == 0 { "-".into() } else { show::time(ends.cast_signed()) };
        let cells = [
            id.to_string(),
            show::size(dq.curspace),
            limit(dq.bsoftlimit),
            limit(dq.bhardlimit),
            until(dq.btime),
            dq.curinodes.to_string(),
            count(dq.isoftlimit),
            count(dq.ihardlimit),
            until(dq.itime),
        ];
        out.line(&row(cells.each_ref().map(String::as_str)))?;
    }
    Ok(())
}

struct InImage<'a> {
    volume: &'a Volume,
    at: &'a ImageArgs,
}

impl InImage<'_> {
    fn done<T>(&self, result: Result<T, extant::Error>) -> Outcome<T> {
        result.map_err(|err| Failure::mount(&self.at.image, &err))
    }
}

impl Quotas for InImage<'_> {
    fn on_record(&self) -> Outcome<Vec<QuotaKind>> {
        Ok(self.volume.fs.quota_on_record())
    }

    fn grace(&self, kind: QuotaKind) -> Outcome<QuotaGrace> {
        self.done(self.volume.fs.quota_grace(kind))
    }

    fn all(&self, kind: QuotaKind) -> Outcome<Vec<(u32, Dqblk)>> {
        self.done(self.volume.fs.quota_list(kind, 0, usize::MAX))
    }

    fn one(&self, kind: QuotaKind, id: u32) -> Outcome<Dqblk> {
        let found = self.done(self.volume.fs.quota_list(kind, id, 1))?.pop();
        Ok(found.filter(|(found, _)| *found == id).unwrap_or_default().1)
    }

    fn set(&self, kind: QuotaKind, id: u32, limits: QuotaLimits) -> Outcome {
        self.done(self.volume.fs.set_quota(kind, id, limits, &self.volume.cred))
    }

    fn set_grace(&self, kind: QuotaKind, grace: QuotaGrace) -> Outcome {
        self.done(self.volume.fs.set_quota_grace(kind, grace, &self.volume.cred))
    }
}

struct OnMount<'a> {
    file: File,
    path: &'a Path,
}

impl OnMount<'_> {
    fn call(&self, head: QuotaHead, limits: QuotaEntry) -> Outcome<(QuotaHead, Vec<QuotaEntry>)> {
        private::quota(&self.file, head, limits).map_err(|err| self.failed(&err))
    }

    fn failed(&self, err: &io::Error) -> Failure {
        let failure = Failure::host(self.path, err);
        match err.kind() {
            io::ErrorKind::PermissionDenied => {
                failure.hint("only one's own numbers are for everybody: --user --id, or --group --id")
            }
            _ => failure,
        }
    }
}

fn head(op: u32, kind: QuotaKind, id: u32) -> QuotaHead {
    QuotaHead { op, kind: kind as u32, id, count: QUOTA_ROOM as u32, ..QuotaHead::default() }
}

impl Quotas for OnMount<'_> {
    fn on_record(&self) -> Outcome<Vec<QuotaKind>> {
        let (head, _) = self.call(head(quota_op::LOOK, QuotaKind::User, 0), QuotaEntry::default())?;
        Ok(KINDS.into_iter().filter(|kind| head.kinds & 1 << *kind as u32 != 0).collect())
    }

    fn grace(&self, kind: QuotaKind) -> Outcome<QuotaGrace> {
        let (head, _) = self.call(head(quota_op::LOOK, kind, 0), QuotaEntry::default())?;
        Ok(QuotaGrace { space: head.space_grace, inodes: head.inodes_grace })
    }

    fn all(&self, kind: QuotaKind) -> Outcome<Vec<(u32, Dqblk)>> {
        let mut all = Vec::new();
        let mut from = Some(0);
        while let Some(first) = from {
            let (_, some) = self.call(head(quota_op::LIST, kind, first), QuotaEntry::default())?;
            from = some.last().and_then(|entry| entry.id.checked_add(1));
            all.extend(some.iter().map(|entry| (entry.id, entry.dqblk())));
        }
        Ok(all)
    }

    fn one(&self, kind: QuotaKind, id: u32) -> Outcome<Dqblk> {
        let (_, entries) = self.call(head(quota_op::GET, kind, id), QuotaEntry::default())?;
        Ok(entries.first().map(QuotaEntry::dqblk).unwrap_or_default())
    }

    fn set(&self, kind: QuotaKind, id: u32, limits: QuotaLimits) -> Outcome {
        let QuotaLimits { space_hard, space_soft, inodes_hard, inodes_soft } = limits;
        let limits =
            QuotaEntry { id, space_hard, space_soft, inodes_hard, inodes_soft, ..Default::default() };
        self.call(head(quota_op::SET, kind, id), limits).map(drop)
    }

    fn set_grace(&self, kind: QuotaKind, grace: QuotaGrace) -> Outcome {
        let asked = QuotaHead {
            space_grace: grace.space,
            inodes_grace: grace.inodes,
            ..head(quota_op::SET_GRACE, kind, 0)
        };
        self.call(asked, QuotaEntry::default()).map(drop)
    }
}
