//! Standard output.

use std::io::{BufWriter, StdoutLock, Write as _};

use serde_json::Value;

use crate::fail::{Failure, Outcome};

/// Buffered standard output whose errors end the command.
pub(crate) struct Out(BufWriter<StdoutLock<'static>>);

impl Out {
    pub(crate) fn new() -> Self {
        Self(BufWriter::with_capacity(64 << 10, std::io::stdout().lock()))
    }

    pub(crate) fn line(&mut self, line: &str) -> Outcome {
        self.bytes(line.as_bytes())?;
        self.bytes(b"\n")
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Outcome {
        self.0.write_all(bytes).map_err(|err| Failure::output(&err))
    }

    pub(crate) fn json(&mut self, value: &Value) -> Outcome {
        let text = serde_json::to_string_pretty(value).map_err(|err| Failure::new(err.to_string()))?;
        self.line(&text)
    }

    pub(crate) fn finish(mut self) -> Outcome {
        self.0.flush().map_err(|err| Failure::output(&err))
    }
}
