//! Timing commands in turns, and figures with their bounds.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;

/// What a value is counted in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Millions of bytes.
    Mb,
}

/// What a figure is held to.
#[derive(Clone, Copy)]
pub enum Bound {
    /// Nothing; it is there to compare.
    None,
    /// At most so many of its unit.
    Most(f64),
    /// At most so many times the other.
    Times(f64),
    /// At most so much more than the other.
    More(f64),
}

/// One measured value beside another.
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The value.
    pub ours: f64,
    /// Its peer or floor, and its value.
    pub beside: Option<(String, f64)>,
    /// Of both.
    pub unit: Unit,
    /// What it is held to.
    pub bound: Bound,
}

impl Figure {
    /// Whether it is within its bound.
    pub fn holds(&self) -> Option<bool> {
        let other = self.beside.as_ref().map(|(_, v)| *v);
        match (self.bound, other) {
            (Bound::None, _) | (Bound::Times(_) | Bound::More(_), None) => None,
            (Bound::Most(most), _) => Some(self.ours <= most),
            (Bound::Times(times), Some(other)) => Some(self.ours <= times * other),
            (Bound::More(more), Some(other)) => Some(self.ours <= other + more),
        }
    }

    /// For people.
    pub fn line(&self) -> String {
        let unit = match self.unit {
            Unit::Ms => "ms",
            Unit::Mb => "MB",
        };
        let beside = self.beside.as_ref().map_or(String::new(), |(name, value)| {
            format!("  {:.2} x {name} ({value:.2} {unit})", self.ours / value)
        });
        let bound = match self.bound {
            Bound::None => String::new(),
            Bound::Most(most) => format!("  bound {most} {unit}"),
            Bound::Times(times) => format!("  bound {times} x"),
            Bound::More(more) => format!("  bound {more} {unit} more"),
        };
        let verdict = match self.holds() {
            Some(true) => "  ok",
            Some(false) => "  MISSED",
            None => "",
        };
        format!(
            "{:<34} {:>9.2} {unit}{beside}{bound}{verdict}",
            self.name, self.ours
        )
    }

    /// For machines.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.name,
            "value": self.ours,
            "unit": match self.unit { Unit::Ms => "ms", Unit::Mb => "MB" },
            "beside": self.beside.as_ref().map(|(name, value)| serde_json::json!({
                "name": name, "value": value, "ratio": self.ours / value,
            })),
            "holds": self.holds(),
        })
    }
}

/// Milliseconds of a duration.
pub fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs a command that must succeed, silently, and returns how long it took.
pub fn timed(mut command: Command) -> Result<Duration, Error> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let text = describe(&command);
    let begin = Instant::now();
    let child = command.spawn().map_err(|source| Error::Run {
        program: text.clone(),
        source,
    })?;
    let out = child.wait_with_output().map_err(|source| Error::Run {
        program: text.clone(),
        source,
    })?;
    let took = begin.elapsed();
    if !out.status.success() {
        return Err(failed(text, &out.status.to_string(), &out.stderr));
    }
    Ok(took)
}

/// Runs a command that must succeed, and returns its standard output.
pub fn output(mut command: Command) -> Result<String, Error> {
    let text = describe(&command);
    command.stdin(Stdio::null());
    let out = command.output().map_err(|source| Error::Run {
        program: text.clone(),
        source,
    })?;
    if !out.status.success() {
        return Err(failed(text, &out.status.to_string(), &out.stderr));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim_end().to_owned())
}

fn failed(command: String, status: &str, stderr: &[u8]) -> Error {
    let said = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(5)..].join("; ");
    Error::Failed {
        command,
        status: status.into(),
        said: last,
    }
}

fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|w| w.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Medians of several commands run in turns, the first rounds not counted.
pub fn in_turns(commands: &[&dyn Fn() -> Command], runs: usize) -> Result<Vec<f64>, Error> {
    let mut times = vec![Vec::with_capacity(runs); commands.len()];
    for round in 0..runs + 5 {
        for (command, times) in commands.iter().zip(&mut times) {
            let took = timed(command())?;
            if round >= 5 {
                times.push(ms(took));
            }
        }
    }
    Ok(times.into_iter().map(median).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(ours: f64, beside: Option<f64>, bound: Bound) -> Figure {
        Figure {
            name: "n".into(),
            ours,
            beside: beside.map(|v| ("peer".into(), v)),
            unit: Unit::Ms,
            bound,
        }
    }

    #[test]
    fn a_bound_is_absolute_a_ratio_or_a_difference() {
        assert_eq!(figure(3.0, None, Bound::Most(3.0)).holds(), Some(true));
        assert_eq!(
            figure(3.1, Some(9.0), Bound::Most(3.0)).holds(),
            Some(false)
        );
        assert_eq!(
            figure(3.0, Some(2.0), Bound::Times(1.5)).holds(),
            Some(true)
        );
        assert_eq!(
            figure(3.1, Some(2.0), Bound::Times(1.5)).holds(),
            Some(false)
        );
        assert_eq!(
            figure(5.0, Some(2.0), Bound::More(2.0)).holds(),
            Some(false)
        );
        assert_eq!(figure(5.0, None, Bound::Times(1.5)).holds(), None);
        assert!(
            figure(3.0, Some(2.0), Bound::Times(1.5))
                .line()
                .contains("1.50 x peer (2.00 ms)")
        );
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert!(median(Vec::new()).is_nan());
    }
}
