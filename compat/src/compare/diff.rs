//! Lines that one text has and the other has not.

/// `- line` of the first and `+ line` of the second, in order; nothing where they agree.
pub(crate) fn lines(first: &str, second: &str) -> Vec<String> {
    let (first, second): (Vec<&str>, Vec<&str>) = (first.lines().collect(), second.lines().collect());
    // How many lines the two texts have in common from here to their ends.
    let mut common = vec![vec![0_u32; second.len() + 1]; first.len() + 1];
    for i in (0..first.len()).rev() {
        for j in (0..second.len()).rev() {
            common[i][j] = if first[i] == second[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut changes) = (0, 0, Vec::new());
    while i < first.len() || j < second.len() {
        if i < first.len() && j < second.len() && first[i] == second[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == second.len() || (i < first.len() && common[i + 1][j] >= common[i][j + 1]) {
            changes.push(format!("- {}", first[i]));
            i += 1;
        } else {
            changes.push(format!("+ {}", second[j]));
            j += 1;
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_what_differs_is_told() {
        assert_eq!(super::lines("a\nb\nc\n", "a\nx\nc\nd\n"), ["- b", "+ x", "+ d"]);
        assert_eq!(super::lines("same\n", "same\n"), Vec::<String>::new());
    }
}
