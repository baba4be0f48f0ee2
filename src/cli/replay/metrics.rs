//! Just enough of the Prometheus text format to read one counter.

const NAME: &str = "fanfold_store_reads_total";
/// The paths on which a viewer waits; what relay and fan-out read is no poll's doing.
const PATHS: [&str; 3] = ["poll", "page", "changes"];

/// The reads of the store on behalf of viewers, or `None` if there is no such counter.
pub fn store_reads(text: &str) -> Option<u64> {
    let mut sum = None;
    for line in text.lines() {
        let Some(sample) = line.strip_prefix(NAME) else { continue };
        let Some((labels, value)) = sample.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { continue };
        let path = labels.split(',').find_map(|label| label.trim().strip_prefix("path=\"")?.strip_suffix('"'));
        let sum = sum.get_or_insert(0);
        if path.is_some_and(|path| PATHS.contains(&path)) {
            // A counter of reads is a whole number; the format allows it to be written as a float.
            *sum += value.split_whitespace().next()?.parse::<f64>().ok()? as u64;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_for_viewers_are_summed() {
        let text = "# TYPE fanfold_store_reads_total counter\n\
            fanfold_store_reads_total{path=\"page\"} 40\n\
            fanfold_store_reads_total{node=\"a\", path=\"changes\"} 2 1395066363000\n\
            fanfold_store_reads_total{path=\"relay\"} 1000\n\
            fanfold_store_reads_total_other{path=\"page\"} 7\n\
            fanfold_streams 3\n";
        assert_eq!(store_reads(text), Some(42));
        assert_eq!(store_reads("fanfold_store_reads_total{path=\"relay\"} 5\n"), Some(0));
        assert_eq!(store_reads("fanfold_streams 3\n"), None);
    }
}
