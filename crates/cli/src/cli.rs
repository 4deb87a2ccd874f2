//! The command line as a whole: options for every command, the nouns, and where an unknown word
//! goes.

use crate::commands::{
    account, app, audit, cloud, code, completion, context, director, domain, env, logs, metrics,
    node, operation, own, secret, service, token, top, user,
};
use crate::exit::{CliError, Exit, Outcome};
use crate::printer::Printer;
use crate::session::Session;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;

#[derive(Parser)]
#[command(
    name = "conpaas",
    version,
    about = "Run web applications on machines of their own, and scale them",
    long_about = "Run web applications on machines of their own, and scale them.\n\n\
        A target is APP, APP/SERVICE or APP/SERVICE/NODE, by name or id; OWNER:APP is another's.\n\
        Data goes to standard output, everything else to standard error.",
    after_help = "Examples:\n  \
        conpaas nutshell up                  start ConPaaS on this computer\n  \
        conpaas app create shop              make an application\n  \
        conpaas service types                see what can run in it\n  \
        conpaas app start shop               start all its services\n\n\
        Exit codes: 0 done, 1 failed, 2 usage, 3 not logged in or not allowed, 4 not found,\n\
        5 conflict or quota, 6 timed out or detached while the work goes on.\n\n\
        Variables: CONPAAS_CONTEXT; CONPAAS_URL with CONPAAS_TOKEN and CONPAAS_FINGERPRINT; NO_COLOR.",
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Noun,
}

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// Which Director to talk to (see `conpaas context list`)
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "CONPAAS_CONTEXT",
        hide_env_values = true
    )]
    pub context: Option<String>,
    /// Print JSON: one value, or one a line where the command follows something
    #[arg(long, short = 'j', global = true)]
    pub json: bool,
    /// Say nothing but data, warnings and errors
    #[arg(long, short = 'q', global = true)]
    pub quiet: bool,
    /// Change it only if it still is what you looked at: a generation that `show` printed (g12)
    #[arg(long, global = true, value_name = "GENERATION", hide_short_help = true)]
    pub if_match: Option<String>,
}

#[derive(Subcommand)]
enum Noun {
    /// ConPaaS on this very computer
    #[cfg(feature = "daemons")]
    #[command(subcommand)]
    Nutshell(crate::nutshell::NutshellCommand),
    Login(account::LoginArgs),
    Logout(account::LogoutArgs),
    Whoami(account::WhoamiArgs),
    /// The Directors you know
    #[command(subcommand, visible_alias = "contexts")]
    Context(context::ContextCommand),
    /// Applications: services that belong together
    #[command(subcommand, visible_alias = "apps")]
    App(app::AppCommand),
    /// Services: the parts of an application
    #[command(subcommand, visible_alias = "services")]
    Service(service::ServiceCommand),
    /// Code versions of a service
    #[command(subcommand)]
    Code(code::CodeCommand),
    /// Host names that lead to a service beside its own
    #[command(subcommand, visible_alias = "domains")]
    Domain(domain::DomainCommand),
    /// Variables that code of a service finds in its environment
    #[command(subcommand)]
    Env(env::EnvCommand),
    /// The same for what nobody else may see
    #[command(subcommand, visible_alias = "secrets")]
    Secret(secret::SecretCommand),
    /// Nodes: machines in the hands of an application
    #[command(subcommand, visible_alias = "nodes")]
    Node(node::NodeCommand),
    Logs(logs::LogsArgs),
    Top(top::TopArgs),
    Metrics(metrics::MetricsArgs),
    /// Changes under way, and those that ended
    #[command(subcommand, visible_alias = "operations")]
    Operation(operation::OperationCommand),
    /// Places machines come from
    #[command(subcommand, visible_alias = "clouds")]
    Cloud(cloud::CloudCommand),
    /// Sizes of machines
    #[command(subcommand, visible_alias = "instance-types")]
    InstanceType(cloud::InstanceTypeCommand),
    /// The Director itself
    #[command(subcommand)]
    Director(director::DirectorCommand),
    /// Who may use this installation
    #[command(subcommand, visible_alias = "users")]
    User(user::UserCommand),
    /// Tokens for programs that call the API
    #[command(subcommand, visible_alias = "tokens")]
    Token(token::TokenCommand),
    /// Who changed what
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// The machine image
    #[cfg(feature = "daemons")]
    #[command(subcommand)]
    Image(crate::commands::image::ImageCommand),
    #[cfg(feature = "daemons")]
    Simulate(crate::commands::simulate::SimulateArgs),
    Completion(completion::CompletionArgs),
    /// `TYPE COMMAND TARGET`: a service type's own commands, learned from the Director.
    #[command(external_subcommand)]
    Own(Vec<String>),
}

/// The parser, for completions and help.
pub fn parser() -> clap::Command {
    let nouns: Vec<String> = Cli::command()
        .get_subcommands()
        .filter(|noun| noun.has_subcommands())
        .map(|noun| noun.get_name().to_owned())
        .collect();
    nouns.into_iter().fold(Cli::command(), |parser, noun| {
        parser.mut_subcommand(noun, with_examples_of_verbs)
    })
}

/// A noun's help shows the first example of each of its verbs.
fn with_examples_of_verbs(noun: clap::Command) -> clap::Command {
    // One that does something by itself has examples of its own.
    if noun.get_after_help().is_some() {
        return noun;
    }
    let examples: Vec<String> = noun
        .get_subcommands()
        .filter_map(|verb| {
            let help = verb.get_after_help()?.to_string();
            help.lines().nth(1).map(str::to_owned)
        })
        .collect();
    noun.after_help(format!("Examples:\n{}", examples.join("\n")))
}

/// Parses and runs; prints the error if there is one.
pub fn run(arguments: Vec<OsString>) -> Exit {
    let parsed = parser()
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let is_error = error.use_stderr();
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let text = error.render();
            let text = if plain || !is_terminal(is_error) {
                text.to_string()
            } else {
                text.ansi().to_string()
            };
            Printer::new(false, false).parser_text(&text, is_error);
            return if is_error { Exit::Usage } else { Exit::Done };
        }
    };
    let Cli { mut global, noun } = cli;
    if let Noun::Own(words) = &noun {
        own::take_global(words, &mut global);
    }
    let context = global.context.clone().filter(|name| !name.is_empty());
    let session = Session {
        printer: Printer::new(global.json, global.quiet),
        context,
        if_match: global.if_match.take(),
    };
    match on_runtime(&session, noun) {
        Ok(()) => Exit::Done,
        Err(error) => {
            session.printer.error(&error);
            error.exit
        }
    }
}

fn is_terminal(error: bool) -> bool {
    use std::io::IsTerminal;
    if error {
        std::io::stderr().is_terminal()
    } else {
        std::io::stdout().is_terminal()
    }
}

fn on_runtime(session: &Session, noun: Noun) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed("the program cannot start").because(&error))?;
    let outcome = runtime.block_on(dispatch(session, noun));
    // A thread that still waits for a terminal or a disk must not hold the program.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(session: &Session, noun: Noun) -> Outcome {
    match noun {
        #[cfg(feature = "daemons")]
        Noun::Nutshell(command) => crate::nutshell::run(session, command).await,
        Noun::Login(args) => account::login(session, args).await,
        Noun::Logout(_) => account::logout(session).await,
        Noun::Whoami(_) => account::whoami(session).await,
        Noun::Context(command) => context::run(session, command),
        Noun::App(command) => app::run(session, command).await,
        Noun::Service(command) => service::run(session, command).await,
        Noun::Code(command) => code::run(session, command).await,
        Noun::Domain(command) => domain::run(session, command).await,
        Noun::Env(command) => env::run(session, command).await,
        Noun::Secret(command) => secret::run(session, command).await,
        Noun::Node(command) => node::run(session, command).await,
        Noun::Logs(args) => logs::run(session, args).await,
        Noun::Top(args) => top::run(session, args).await,
        Noun::Metrics(args) => metrics::run(session, args).await,
        Noun::Operation(command) => operation::run(session, command).await,
        Noun::Cloud(command) => cloud::clouds(session, command).await,
        Noun::InstanceType(command) => cloud::instance_types(session, command).await,
        Noun::Director(command) => director::run(session, command).await,
        Noun::User(command) => user::run(session, command).await,
        Noun::Token(command) => token::run(session, command).await,
        Noun::Audit(command) => audit::run(session, command).await,
        #[cfg(feature = "daemons")]
        Noun::Image(command) => crate::commands::image::run(session, command),
        #[cfg(feature = "daemons")]
        Noun::Simulate(args) => crate::commands::simulate::run(session, args),
        Noun::Completion(args) => completion::run(session, args),
        Noun::Own(words) => own::run(session, words).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parser_is_sound() {
        parser().debug_assert();
    }

    fn leaves(command: &clap::Command, path: &str, seen: &mut impl FnMut(&str, &clap::Command)) {
        for sub in command.get_subcommands() {
            let path = format!("{path} {}", sub.get_name());
            if sub.has_subcommands() {
                leaves(sub, &path, seen);
            } else {
                seen(&path, sub);
            }
        }
    }

    #[test]
    fn every_command_shows_an_example_of_itself() {
        let mut undescribed = Vec::new();
        leaves(&parser(), "conpaas", &mut |path, command| {
            undescribed.extend(
                command
                    .get_arguments()
                    .filter(|argument| argument.get_help().is_none())
                    .map(|argument| format!("{path}: {}", argument.get_id())),
            );
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.starts_with("Example"), "{path} has no example");
            assert!(
                help.contains(path),
                "{path} has examples of something else: {help}"
            );
            assert!(
                command.get_about().is_some(),
                "{path} does not say what it does"
            );
        });
        assert_eq!(undescribed, Vec::<String>::new(), "arguments without help");
    }
}
