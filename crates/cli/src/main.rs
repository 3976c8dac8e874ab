//! The program `extant`.

fn main() {
    eprintln!("extant: no command yet");
    std::process::exit(2);
}
