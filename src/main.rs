fn main() -> std::process::ExitCode {
    fanfold::cli::main()
}
