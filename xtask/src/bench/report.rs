//! What a benchmark prints and leaves behind: a table, JSON, and a chart.

use std::fmt::Write as _;

use super::measure::{Metric, Series, ratio};

/// A bound on a figure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    pub(crate) fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtMost(b) => figure <= b,
            Self::AtLeast(b) => figure >= b,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(b) => write!(f, "at most {b}"),
            Self::AtLeast(b) => write!(f, "at least {b}"),
        }
    }
}

/// One figure against its bound.
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) figure: f64,
    pub(crate) bound: Option<Bound>,
    pub(crate) detail: String,
}

impl Figure {
    pub(crate) fn holds(&self) -> bool {
        self.bound.is_none_or(|b| b.holds(self.figure))
    }

    pub(crate) fn print(&self) {
        let verdict = match self.bound {
            None => "reported".to_owned(),
            Some(b) => format!("{b}: {}", if self.holds() { "held" } else { "NOT HELD" }),
        };
        println!("{:<44} {:>9.3}  {verdict:<24} {}", self.name, self.figure, self.detail);
    }
}

/// The ratio of one subject to another as a figure.
pub(crate) fn ratio_figure(
    name: String,
    of: (&str, &Series),
    to: (&str, &Series),
    metric: Metric,
    bound: Option<Bound>,
) -> Figure {
    let detail = format!(
        "{} {:.4} s / {} {:.4} s ({}, {} rounds)",
        of.0,
        of.1.median(metric),
        to.0,
        to.1.median(metric),
        metric.name(),
        of.1.0.len().min(to.1.0.len()),
    );
    Figure { name, figure: ratio(of.1, to.1, metric), bound, detail }
}

/// Writes `target/bench/NAME.json` and `NAME.svg`.
pub(crate) fn save(name: &str, figures: &[Figure]) -> Result<(), String> {
    let dir = std::path::Path::new("target/bench");
    std::fs::create_dir_all(dir).map_err(|err| format!("{}: {err}", dir.display()))?;
    let rows: Vec<_> = figures
        .iter()
        .map(|f| {
            let bound = f.bound.map(|b| b.to_string());
            serde_json::json!({"name": f.name, "figure": f.figure, "bound": bound, "held": f.holds(), "detail": f.detail})
        })
        .collect();
    let json = serde_json::to_string_pretty(&rows).map_err(|err| err.to_string())?;
    let write = |ending: &str, text: &str| {
        let path = dir.join(format!("{name}.{ending}"));
        std::fs::write(&path, text).map_err(|err| format!("{}: {err}", path.display()))
    };
    write("json", &json)?;
    write("svg", &svg(figures))
}

/// A bar for each figure, with its bound as a line; logarithmic, since ratios are.
fn svg(figures: &[Figure]) -> String {
    const ROW: usize = 22;
    const LEFT: f64 = 330.0;
    const WIDTH: f64 = 420.0;
    let x = |v: f64| LEFT + WIDTH * ((v.clamp(0.05, 20.0).ln() - 0.05f64.ln()) / (20f64.ln() - 0.05f64.ln()));
    let height = ROW * figures.len() + 40;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"900\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"900\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (i, f) in figures.iter().enumerate() {
        let y = 20 + i * ROW;
        let colour = if f.holds() { "#4a7" } else { "#c54" };
        let (from, to) = (x(0.05), x(f.figure));
        let name = f.name.replace('&', "&amp;").replace('<', "&lt;");
        let _ = write!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\n<rect x=\"{from:.1}\" y=\"{y}\" \
             width=\"{:.1}\" height=\"14\" fill=\"{colour}\"/>\n<text x=\"{:.1}\" y=\"{}\">{:.2}</text>\n",
            LEFT - 8.0,
            y + 12,
            to - from,
            to + 4.0,
            y + 12,
            f.figure,
        );
        if let Some(Bound::AtMost(b) | Bound::AtLeast(b)) = f.bound {
            let _ = writeln!(
                out,
                "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1}\" y2=\"{2}\" stroke=\"black\"/>",
                x(b),
                y - 2,
                y + 16
            );
        }
    }
    out.push_str("</svg>\n");
    out
}
