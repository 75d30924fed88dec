//! Patterns with `*` (anything) and `?` (one character), as administrators write them in lists of names.

/// Whether all of `text` fits. Takes time by the product of the lengths at most.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut in_text) = (0, 0);
    // Where to go on after the last star, should what follows it not fit.
    let mut retry: Option<(usize, usize)> = None;
    while in_text < text.len() {
        match pattern.get(at) {
            Some('*') => {
                retry = Some((at + 1, in_text));
                at += 1;
                continue;
            }
            Some(char) if *char == '?' || text.get(in_text) == Some(char) => {
                at += 1;
                in_text += 1;
                continue;
            }
            _ => {}
        }
        let Some((after_star, tried)) = retry else { return false };
        retry = Some((after_star, tried + 1));
        (at, in_text) = (after_star, tried + 1);
    }
    pattern.iter().skip(at).all(|char| *char == '*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, text, fits) in [
            ("", "", true),
            ("*", "", true),
            ("a", "", false),
            ("C=GB,*,CN=client?", "C=GB,O=x,CN=client1", true),
            ("C=GB,*,CN=client?", "C=GB,O=x,CN=client12", false),
            ("*abab", "ababab", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXcYb", false),
            ("é?", "éü", true),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
        assert!(!matches(&"*a".repeat(200), &"b".repeat(10_000)));
    }
}
