//! Messages of the server: to standard error in the foreground, to syslog once it is a daemon.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;

use extant_sync::atomic::{AtomicBool, Ordering};
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

static TO_SYSLOG: AtomicBool = AtomicBool::new(false);

/// Where messages go.
struct Log {
    most: Level,
    syslog: Option<UnixDatagram>,
}

/// Facility "daemon" of syslog(3).
const DAEMON: u8 = 3 << 3;

/// Sends messages of this process to standard error, from `most` on. Only the first call counts.
pub(super) fn start(most: Level) {
    let syslog = UnixDatagram::unbound().ok().filter(|s| s.connect("/dev/log").is_ok());
    // A second subscriber is refused; the first one stays.
    let _ = tracing::dispatcher::set_global_default(tracing::Dispatch::new(Log { most, syslog }));
}

/// From now on messages go to syslog: nobody reads standard error any more.
pub(super) fn to_syslog() {
    TO_SYSLOG.store(true, Ordering::Relaxed);
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.most
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.most.into())
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = line.whole();
        match (&self.syslog, TO_SYSLOG.load(Ordering::Relaxed)) {
            (Some(socket), true) => {
                let severity = severity(*event.metadata().level());
                let message = format!("<{}>extant[{}]: {text}", DAEMON | severity, std::process::id());
                // A full or dead syslog must not stop the file system.
                let _ = socket.send(message.as_bytes());
            }
            _ => {
                let _ = writeln!(std::io::stderr().lock(), "extant: {text}");
            }
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// An event's message, then its fields.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn whole(mut self) -> String {
        self.message.push_str(&self.fields);
        self.message.trim_start().to_owned()
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}
