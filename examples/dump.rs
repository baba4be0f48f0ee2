fn main() {
    println!("{}", serde_json::to_string(&fanfold::http::document()).unwrap());
}
