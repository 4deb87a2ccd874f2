//! `conpaas user`: who may use this installation.

use crate::commands::{time, word};
use crate::exit::{CliError, Outcome};
use crate::printer::{Table, print_pairs};
use crate::session::{Session, all, can_ask, secret};
use clap::Subcommand;
use conpaas_client::ListUsersQuery;
use conpaas_model::api::{PasswordChange, QuotaChange, Rank, UserCreate};
use conpaas_model::ids::Name;
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum UserCommand {
    /// Add a user (for operators)
    #[command(
        after_help = "Examples:\n  conpaas user create ada\n  conpaas user create ada --password-file - --quota 10 < secret.txt"
    )]
    Create {
        /// Its name: small letters, digits and '-'
        name: Name,
        /// Read the password from a file (- for standard input)
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Let them run the installation too
        #[arg(long)]
        operator: bool,
        /// Most nodes at once
        #[arg(long, value_name = "NODES")]
        quota: Option<u32>,
    },
    /// List users (for operators)
    #[command(after_help = "Examples:\n  conpaas user list")]
    List,
    /// Show a user
    #[command(after_help = "Examples:\n  conpaas user show ada")]
    Show {
        /// Name or id
        user: String,
    },
    /// Delete a user who has no applications (for operators)
    #[command(after_help = "Examples:\n  conpaas user delete ada --yes")]
    Delete {
        /// Name or id
        user: String,
        /// Do not ask for the name
        #[arg(long, short)]
        yes: bool,
    },
    /// Change a password: one's own, or as an operator another's
    #[command(
        after_help = "Examples:\n  conpaas user password\n  conpaas user password ada --password-file new.txt"
    )]
    Password {
        /// By default oneself
        user: Option<String>,
        /// Read the new password from a file (- for standard input)
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Read one's present password from a file
        #[arg(long, value_name = "FILE")]
        current_password_file: Option<PathBuf>,
    },
    /// Set how many nodes a user may have at once (for operators)
    #[command(after_help = "Examples:\n  conpaas user quota ada 20")]
    Quota {
        /// Name or id
        user: String,
        /// Most nodes at once
        #[arg(value_name = "NODES")]
        nodes: u32,
    },
}

/// A new password, typed twice when a person types it.
fn new_password(file: Option<&std::path::Path>) -> Result<String, CliError> {
    let password = secret(file, "New password: ")?;
    if file.is_none() && can_ask() && secret(None, "Once more: ")? != password {
        return Err(CliError::usage(
            "the two passwords differ, so nothing was changed",
        ));
    }
    Ok(password)
}

pub async fn run(session: &Session, command: UserCommand) -> Outcome {
    let client = session.client()?;
    let printer = &session.printer;
    match command {
        UserCommand::Create {
            name,
            password_file,
            operator,
            quota,
        } => {
            let password = new_password(password_file.as_deref())?;
            let rank = Some(if operator { Rank::Operator } else { Rank::User });
            let user = client
                .create_user(&UserCreate {
                    name,
                    password,
                    rank,
                    node_quota: quota,
                })
                .await?;
            printer.either(&user, |p| p.line(user.name.as_str()))
        }
        UserCommand::List => {
            let users = all(None, async |cursor| {
                client
                    .list_users(&ListUsersQuery {
                        cursor,
                        ..Default::default()
                    })
                    .await
            })
            .await?;
            printer.either(&users, |printer| {
                let mut table = Table::new(["NAME", "ID", "RANK", "NODES", "QUOTA", "CREATED"]);
                for user in &users {
                    table.row([
                        user.name.to_string(),
                        user.id.to_string(),
                        word(&user.rank),
                        user.nodes.to_string(),
                        user.node_quota.to_string(),
                        time(&user.created_at),
                    ]);
                }
                table.print(printer);
            })
        }
        UserCommand::Show { user } => {
            let user = client.show_user(&user).await?;
            printer.either(&user, |printer| {
                print_pairs(
                    printer,
                    &[
                        ("name", user.name.to_string()),
                        ("id", user.id.to_string()),
                        ("rank", word(&user.rank)),
                        ("nodes", format!("{} of {}", user.nodes, user.node_quota)),
                        ("created", time(&user.created_at)),
                    ],
                );
            })
        }
        UserCommand::Delete { user, yes } => {
            session.confirm(
                yes,
                &format!("the user {user} is about to be deleted"),
                &user,
            )?;
            client.delete_user(&user).await?;
            printer.either(&serde_json::json!({"deleted": user}), |p| {
                p.note(&format!("deleted {user}"))
            })
        }
        UserCommand::Password {
            user,
            password_file,
            current_password_file,
        } => {
            let me = client.whoami().await?;
            let user = user.unwrap_or_else(|| me.name.to_string());
            let own = user == me.name.as_str() || user == me.id.as_str();
            let current = match (own, &current_password_file) {
                (_, Some(file)) => Some(secret(Some(file), "")?),
                (true, None) if can_ask() => Some(secret(None, "Present password: ")?),
                (true, None) => {
                    return Err(CliError::usage(
                        "your present password is needed, and there is no terminal to ask at",
                    )
                    .hint("add --current-password-file FILE"));
                }
                (false, None) => None,
            };
            let new = new_password(password_file.as_deref())?;
            client
                .change_password(&user, &PasswordChange { current, new })
                .await?;
            printer.either(&serde_json::json!({"user": user}), |p| {
                p.note(&format!("{user} has a new password"))
            })
        }
        UserCommand::Quota { user, nodes } => {
            let user = client
                .set_quota(&user, &QuotaChange { node_quota: nodes })
                .await?;
            printer.either(&user, |p| {
                p.note(&format!("{} may have {} nodes", user.name, user.node_quota))
            })
        }
    }
}
