//! A service type's own commands, `conpaas TYPE COMMAND TARGET [--key value..]`, as the Director
//! tells them; and the answer to a word that is nothing at all.

use crate::cli::Global;
use crate::commands::{plain, service::all_types};
use crate::exit::{CliError, Outcome};
use crate::printer::{Table, print_pairs};
use crate::session::Session;
use crate::target::ServiceTarget;
use crate::values;
use conpaas_model::api::{CommandCall, CommandInfo, ServiceTypeInfo};
use serde_json::{Map, Value};

/// The parser leaves everything after an unknown word alone, so options for every command are
/// taken here.
pub fn take_global(words: &[String], global: &mut Global) {
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--json" | "-j" => global.json = true,
            "--quiet" | "-q" => global.quiet = true,
            "--context" => global.context = rest.next().cloned().or(global.context.take()),
            "--if-match" => global.if_match = rest.next().cloned().or(global.if_match.take()),
            _ => {
                if let Some(name) = word.strip_prefix("--context=") {
                    global.context = Some(name.to_owned());
                } else if let Some(tag) = word.strip_prefix("--if-match=") {
                    global.if_match = Some(tag.to_owned());
                }
            }
        }
    }
}

fn without_global(words: Vec<String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut rest = words.into_iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--json" | "-j" | "--quiet" | "-q" => {}
            "--context" | "--if-match" => drop(rest.next()),
            text if text.starts_with("--context=") || text.starts_with("--if-match=") => {}
            _ => kept.push(word),
        }
    }
    kept
}

pub async fn run(session: &Session, words: Vec<String>) -> Outcome {
    let mut words = without_global(words).into_iter();
    let name = words.next().unwrap_or_default();
    let rest: Vec<String> = words.collect();
    let nouns = crate::cli::parser();
    let nouns: Vec<&str> = nouns
        .get_subcommands()
        .map(clap::Command::get_name)
        .collect();
    let client = match session.client() {
        Ok(client) => client,
        Err(_) => return Err(unknown(&name, &nouns, &[])),
    };
    let types = match all_types(&client).await {
        Ok(types) => types,
        // What it might have been cannot be known now; a slip of the finger can.
        Err(error) => {
            let guess = unknown(&name, &nouns, &[]);
            return Err(if values::nearest(&name, nouns.iter().copied()).is_some() {
                guess
            } else {
                error.into()
            });
        }
    };
    let Some(info) = types.iter().find(|info| info.name == name) else {
        return Err(unknown(&name, &nouns, &types));
    };
    let asks_help = rest.is_empty() || rest.iter().any(|word| word == "--help" || word == "-h");
    let command = rest.first().filter(|word| !word.starts_with('-'));
    let Some(command) = command else {
        return if asks_help {
            help(session, info)
        } else {
            Err(CliError::usage("the command is missing").hint(usage(info)))
        };
    };
    let Some(command) = info.commands.iter().find(|known| known.name == *command) else {
        let near = values::nearest(
            command,
            info.commands.iter().map(|known| known.name.as_str()),
        );
        return Err(
            CliError::usage(format!("{name} has no command '{command}'")).hint(match near {
                Some(near) => format!("did you mean '{near}'?"),
                None => usage(info),
            }),
        );
    };
    if asks_help {
        return command_help(session, info, command);
    }
    let (target, arguments) = parse(command, &rest[1..]).map_err(|why| {
        CliError::usage(why).hint(format!("see conpaas {} {} --help", info.name, command.name))
    })?;
    let target: ServiceTarget = target.parse().map_err(CliError::usage)?;
    let call = CommandCall {
        arguments: Value::Object(arguments),
    };
    let answer = client
        .call_command(&target.app, &target.service, &command.name, &call)
        .await?;
    session
        .printer
        .either(&answer.result, |_| show(session, &answer.result))
}

fn usage(info: &ServiceTypeInfo) -> String {
    format!("see conpaas {} --help", info.name)
}

fn unknown(word: &str, nouns: &[&str], types: &[ServiceTypeInfo]) -> CliError {
    let known = nouns
        .iter()
        .copied()
        .chain(types.iter().map(|info| info.name.as_str()));
    CliError::usage(format!("there is no command '{word}'")).hint(
        match values::nearest(word, known) {
            Some(near) => format!("did you mean 'conpaas {near}'?"),
            None => "see conpaas --help".to_owned(),
        },
    )
}

/// The target and the arguments out of `TARGET --key value --key=value --flag`.
fn parse(command: &CommandInfo, words: &[String]) -> Result<(String, Map<String, Value>), String> {
    let properties = &command.arguments["properties"];
    let mut target = None;
    let mut arguments = Map::new();
    let mut rest = words.iter().peekable();
    while let Some(word) = rest.next() {
        let Some(option) = word.strip_prefix("--") else {
            if target.replace(word.clone()).is_some() {
                return Err(format!("'{word}' is one target too many"));
            }
            continue;
        };
        let (key, given) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (option, None),
        };
        // Options are written with dashes, keys of a schema often are not.
        let found = [key.to_owned(), key.replace('-', "_")]
            .into_iter()
            .find(|key| properties.get(key).is_some());
        let Some(found) = found else {
            let known: Vec<String> = properties
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, _)| format!("--{key}"))
                .collect();
            return Err(match known.is_empty() {
                true => format!("'{}' takes no options, and '{word}' is one", command.name),
                false => format!(
                    "'{}' has no option '--{key}', only {}",
                    command.name,
                    known.join(", ")
                ),
            });
        };
        let schema = properties.get(&found);
        let is_flag = schema.is_some_and(|schema| schema["type"] == "boolean");
        let value = match given {
            Some(text) => values::typed(schema, &text),
            None if is_flag => Value::Bool(true),
            None => match rest.next() {
                Some(text) => values::typed(schema, text),
                None => return Err(format!("--{key} needs a value")),
            },
        };
        if arguments.insert(found, value).is_some() {
            return Err(format!("--{key} is given twice"));
        }
    }
    match target {
        Some(target) => Ok((target, arguments)),
        None => Err("the target is missing: APP/SERVICE".to_owned()),
    }
}

fn help(session: &Session, info: &ServiceTypeInfo) -> Outcome {
    session.printer.either(info, |printer| {
        printer.line(&format!(
            "{}\n\nUsage: conpaas {} COMMAND APP/SERVICE [--KEY VALUE]\n",
            info.title, info.name
        ));
        if info.commands.is_empty() {
            printer.line("It has no commands of its own.");
            return;
        }
        let mut table = Table::new(["COMMAND", "TITLE"]);
        for command in &info.commands {
            table.row([command.name.clone(), command.title.clone()]);
        }
        table.print(printer);
    })
}

fn command_help(session: &Session, info: &ServiceTypeInfo, command: &CommandInfo) -> Outcome {
    session.printer.either(command, |printer| {
        printer.line(&format!(
            "{}\n\nUsage: conpaas {} {} APP/SERVICE [--KEY VALUE]",
            command.title, info.name, command.name
        ));
        if let Some(properties) = command.arguments["properties"]
            .as_object()
            .filter(|properties| !properties.is_empty())
        {
            printer.line("");
            let mut table = Table::new(["OPTION", "TYPE", "DESCRIPTION"]);
            for (key, schema) in properties {
                let text = schema["description"]
                    .as_str()
                    .or(schema["title"].as_str())
                    .unwrap_or_default();
                table.row([format!("--{key}"), plain(&schema["type"]), text.to_owned()]);
            }
            table.print(printer);
        }
        printer.line(&format!(
            "\nExamples:\n  conpaas {} {} APP/SERVICE",
            info.name, command.name
        ));
    })
}

fn show(session: &Session, result: &Value) {
    match result {
        Value::Object(pairs)
            if pairs
                .values()
                .all(|value| !value.is_object() && !value.is_array()) =>
        {
            let pairs: Vec<(&str, String)> = pairs
                .iter()
                .map(|(key, value)| (key.as_str(), plain(value)))
                .collect();
            print_pairs(&session.printer, &pairs);
        }
        Value::Object(_) | Value::Array(_) => {
            session
                .printer
                .line(&serde_json::to_string_pretty(result).unwrap_or_else(|_| result.to_string()));
        }
        Value::Null => {}
        other => session.printer.line(&plain(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_become_typed_arguments() {
        let command = CommandInfo {
            name: "greet".into(),
            title: String::new(),
            kind: "query".into(),
            arguments: json!({"properties": {"who": {"type": "string"}, "how_often": {"type": "integer"}, "loud": {"type": "boolean"}}}),
        };
        let (target, arguments) =
            parse(&command, &words("shop/hi --who 5 --how-often=3 --loud")).unwrap();
        assert_eq!(target, "shop/hi");
        assert_eq!(
            Value::Object(arguments),
            json!({"who": "5", "how_often": 3, "loud": true})
        );
        for (bad, why) in [
            ("--who x", "the target is missing: APP/SERVICE"),
            ("a/b c/d", "'c/d' is one target too many"),
            ("a/b --who", "--who needs a value"),
            ("a/b --who 1 --who 2", "--who is given twice"),
            (
                "a/b --x 1",
                "'greet' has no option '--x', only --how_often, --loud, --who",
            ),
        ] {
            assert_eq!(parse(&command, &words(bad)).unwrap_err(), why, "{bad}");
        }
    }

    #[test]
    fn options_for_every_command_are_found_behind_the_type() {
        let all = words("hi greet a/b --json --context work --who x");
        let mut global = Global::default();
        take_global(&all, &mut global);
        assert!(global.json && global.context.as_deref() == Some("work"));
        assert_eq!(without_global(all), words("hi greet a/b --who x"));
    }
}
