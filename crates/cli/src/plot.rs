//! A plot in plain characters: columns over time, with a mark below for each thing that happened.
//! Pure: numbers in, lines out.

/// Rows of columns.
const HEIGHT: usize = 8;
/// Place for the numbers at the left.
const MARGIN: usize = 10;
/// Marks in the order in which things happened; beyond the last all are alike.
const MARKS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";

/// What is plotted: from `since` on, one value for each step, nothing where nothing was measured.
pub struct Plot<'a> {
    pub title: &'a str,
    pub values: &'a [Option<f64>],
    /// Texts for the beginning and the end of the time.
    pub from: &'a str,
    pub until: &'a str,
}

/// The mark of the n-th thing that happened.
pub fn mark(index: usize) -> char {
    MARKS.get(index).map_or('+', |mark| char::from(*mark))
}

/// A number with about three digits that say something.
pub fn short(value: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e4, "k")];
    for (least, unit) in units {
        if value.abs() >= least {
            let scale = if unit == "k" { 1e3 } else { least };
            return format!("{}{unit}", digits(value / scale));
        }
    }
    digits(value)
}

fn digits(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// The lines of a plot that is at most `width` wide; `events` are places between 0 and 1.
pub fn lines(plot: &Plot<'_>, events: &[f64], width: usize) -> Vec<String> {
    let columns = columns(plot.values, width.saturating_sub(MARGIN + 2).max(10));
    let known: Vec<f64> = columns.iter().flatten().copied().collect();
    let mut lines = Vec::new();
    if known.is_empty() {
        lines.push(format!("{}: nothing was measured", plot.title));
        return lines;
    }
    let (most, sum) = known.iter().fold((0.0f64, 0.0), |(most, sum), value| {
        (most.max(*value), sum + value)
    });
    lines.push(format!(
        "{}  (mean {}, most {})",
        plot.title,
        short(sum / known.len() as f64),
        short(most)
    ));
    let top = if most > 0.0 { most } else { 1.0 };
    for row in (0..HEIGHT).rev() {
        let label = match row {
            row if row == HEIGHT - 1 => short(top),
            row if row == HEIGHT / 2 - 1 => short(top / 2.0),
            _ => String::new(),
        };
        let cells: String = columns
            .iter()
            .map(|value| match value {
                None => ' ',
                Some(value) => cell(*value / top * HEIGHT as f64 - row as f64, row),
            })
            .collect();
        lines.push(format!("{label:>MARGIN$} |{cells}").trim_end().to_owned());
    }
    lines.push(format!("{:>MARGIN$} +{}", "0", "-".repeat(columns.len())));
    if !events.is_empty() {
        let mut marks = vec![' '; columns.len()];
        for (index, place) in events.iter().enumerate() {
            let at = (place.clamp(0.0, 1.0) * columns.len() as f64) as usize;
            if let Some(cell) = marks.get_mut(at.min(columns.len().saturating_sub(1))) {
                *cell = mark(index);
            }
        }
        let marks: String = marks.into_iter().collect();
        lines.push(format!("{:>MARGIN$}  {marks}", "").trim_end().to_owned());
    }
    let gap = columns
        .len()
        .saturating_sub(plot.from.len() + plot.until.len())
        .max(1);
    lines.push(format!(
        "{:>MARGIN$}  {}{}{}",
        "",
        plot.from,
        " ".repeat(gap),
        plot.until
    ));
    lines
}

/// One cell of a column that reaches `above` rows beyond the lower end of the row.
fn cell(above: f64, row: usize) -> char {
    if above >= 0.66 {
        '#'
    } else if above >= 0.33 {
        '='
    } else if above > 0.0 || row == 0 {
        // Something small is something; nothing at all is the line below.
        if above > 0.0 { '_' } else { ' ' }
    } else {
        ' '
    }
}

/// As many columns as fit: the means of neighbours, or each value several times.
fn columns(values: &[Option<f64>], width: usize) -> Vec<Option<f64>> {
    if values.is_empty() {
        return Vec::new();
    }
    if values.len() <= width {
        let times = (width / values.len()).max(1);
        return values
            .iter()
            .flat_map(|value| std::iter::repeat_n(*value, times))
            .collect();
    }
    (0..width)
        .map(|column| {
            let (from, to) = (
                column * values.len() / width,
                (column + 1) * values.len() / width,
            );
            let known: Vec<f64> = values[from..to.max(from + 1)]
                .iter()
                .flatten()
                .copied()
                .collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_reach_as_high_as_their_values() {
        let values = [Some(0.0), Some(4.0), None, Some(8.0), Some(2.0)];
        let plot = Plot {
            title: "requests per second",
            values: &values,
            from: "10:00",
            until: "10:05",
        };
        let drawn = lines(&plot, &[0.0, 0.99], 22);
        let expected = [
            "requests per second  (mean 3.5, most 8)",
            "         8 |      ##",
            "           |      ##",
            "           |      ##",
            "           |      ##",
            "         4 |  ##  ##",
            "           |  ##  ##",
            "           |  ##  ####",
            "           |  ##  ####",
            "         0 +----------",
            "            a        b",
            "            10:00 10:05",
        ];
        assert_eq!(drawn, expected);
        assert!(drawn.iter().all(|line| line.is_ascii()));
    }

    #[test]
    fn many_values_share_columns_and_none_are_told() {
        let many: Vec<Option<f64>> = (0..100).map(|n| Some(f64::from(n))).collect();
        assert_eq!(columns(&many, 10).len(), 10);
        assert_eq!(columns(&many, 10)[0], Some(4.5));
        let plot = Plot {
            title: "x",
            values: &[None, None],
            from: "a",
            until: "b",
        };
        assert_eq!(lines(&plot, &[], 80), ["x: nothing was measured"]);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.05, "0.05"),
            (3.0, "3"),
            (12.34, "12.3"),
            (1234.0, "1234"),
            (12_345.0, "12.3k"),
            (5e6, "5M"),
            (100.0, "100"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
