//! All automation of the project: `cargo xtask …`.

fn main() {
    eprintln!("cargo xtask: no command yet");
    std::process::exit(2);
}
