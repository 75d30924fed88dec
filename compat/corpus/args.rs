//! Commands as upstream prints them: shell words, variables of the environment first.

/// A command taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Command {
    /// `NAME=value`, sorted.
    pub(crate) env: Vec<String>,
    /// The program and its arguments.
    pub(crate) args: Vec<String>,
}

pub(crate) fn parse(text: &str) -> Command {
    let mut command = Command::default();
    for word in words(text) {
        let is_variable = || word.split_once('=').is_some_and(|(name, _)| !name.contains(['/', ',']));
        if command.args.is_empty() && is_variable() {
            command.env.push(word);
        } else {
            command.args.push(word);
        }
    }
    command.env.sort_unstable();
    command
}

fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(next) = chars.next() {
        match next {
            '\'' => {
                let word = word.get_or_insert_default();
                word.extend(chars.by_ref().take_while(|next| *next != '\''));
            }
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some(literal) => word.get_or_insert_default().push(literal),
            },
            blank if blank.is_whitespace() => words.extend(word.take()),
            literal => word.get_or_insert_default().push(literal),
        }
    }
    words.extend(word);
    words
}
