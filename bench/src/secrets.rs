//! What secrets cost: a start with some beside one without, and a changed one beside the restart of the service that has it.

use std::time::Instant;

use crate::Error;
use crate::host::Host;
use crate::measure::{Bound, Figure, Unit, in_turns, median, ms, timed};

const NAME: &str = "bench-secrets";
const FLAKE: &str = "{ outputs = { self }: { nixosModules.default = ./module.nix; }; }\n";
const MODULE: &str = r#"{
  codchi.secrets.token = {
    description = "What is measured";
    kind = "credential";
    required = false;
    services = [ "reader" ];
  };
  systemd.services.reader = {
    wantedBy = [ "multi-user.target" ];
    unitConfig.StartLimitIntervalSec = 0;
    script = "exec sleep infinity";
  };
}
"#;

/// Both figures.
pub fn measure(host: &mut Host, runs: usize) -> Result<Vec<Figure>, Error> {
    let source = host.scratch("secrets-module");
    codchi_fs::create_dir_all(&source)?;
    codchi_fs::write(source.join("flake.nix"), FLAKE)?;
    codchi_fs::write(source.join("module.nix"), MODULE)?;
    for value in ["one", "two"] {
        codchi_fs::write(host.scratch(value), format!("{value}\n").repeat(8))?;
    }
    timed(host.init_of(NAME, &source, &[])?)?;
    let figures = figures(host, runs);
    timed(host.codchi(&["stop", NAME]))?;
    figures
}

fn figures(host: &Host, runs: usize) -> Result<Vec<Figure>, Error> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..runs.clamp(3, 25) {
        for (set, times) in [(true, &mut with), (false, &mut without)] {
            timed(host.codchi(&["stop", NAME]))?;
            match set {
                true => timed(host.codchi(&["secrets", "set", NAME, "token", "@one"]))?,
                false => timed(host.codchi(&["secrets", "unset", NAME, "token"]))?,
            };
            let began = Instant::now();
            timed(host.codchi(&["start", NAME]))?;
            if round > 0 {
                times.push(ms(began.elapsed()));
            }
        }
    }
    // Each is a change: the values go round.
    let turn = std::cell::Cell::new(false);
    let change = || {
        turn.set(!turn.get());
        let value = if turn.get() { "@one" } else { "@two" };
        host.codchi(&["secrets", "set", NAME, "token", value])
    };
    let restart = || {
        host.codchi(&[
            "exec",
            "-u",
            "root",
            NAME,
            "--",
            "systemctl",
            "restart",
            "reader",
        ])
    };
    let times = in_turns(&[&change, &restart], runs.min(30))?;
    Ok(vec![
        Figure {
            name: "codchi start, with a secret".into(),
            ours: median(with),
            beside: Some(("without".into(), median(without))),
            unit: Unit::Ms,
            bound: Bound::More(5.0),
        },
        Figure {
            name: "codchi secrets set, to its effect".into(),
            ours: times[0],
            beside: Some(("systemctl restart".into(), times[1])),
            unit: Unit::Ms,
            bound: Bound::More(100.0),
        },
    ])
}
