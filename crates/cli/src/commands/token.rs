//! `conpaas token`: tokens for programs that call the API.

use crate::commands::time;
use crate::exit::Outcome;
use crate::printer::Table;
use crate::session::{Session, all};
use crate::values;
use clap::Subcommand;
use conpaas_client::ListTokensQuery;
use conpaas_model::api::TokenCreate;
use std::time::Duration;

#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make one; its secret is printed this once
    #[command(after_help = "Examples:\n  conpaas token create ci --lifetime 30d > token.txt")]
    Create {
        /// What it is called in the list
        label: String,
        /// How long it lasts; the Director caps it
        #[arg(long, value_name = "DURATION", value_parser = values::duration)]
        lifetime: Option<Duration>,
    },
    /// List yours
    #[command(after_help = "Examples:\n  conpaas token list")]
    List,
    /// Revoke one: it opens nothing any more
    #[command(after_help = "Examples:\n  conpaas token revoke tok-1a2b")]
    Revoke {
        /// Its id (see `conpaas token list`)
        token: String,
    },
}

pub async fn run(session: &Session, command: TokenCommand) -> Outcome {
    let client = session.client()?;
    let printer = &session.printer;
    match command {
        TokenCommand::Create { label, lifetime } => {
            let lifetime_seconds = lifetime.map(|lifetime| lifetime.as_secs());
            let token = client
                .create_token(&TokenCreate {
                    label,
                    lifetime_seconds,
                })
                .await?;
            printer.either(&token, |p| {
                p.line(&token.secret);
                p.note(&format!(
                    "{} lasts until {} UTC; its secret is not shown again",
                    token.id,
                    time(&token.expires_at)
                ));
            })
        }
        TokenCommand::List => {
            let tokens = all(None, async |cursor| {
                client
                    .list_tokens(&ListTokensQuery {
                        cursor,
                        ..Default::default()
                    })
                    .await
            })
            .await?;
            printer.either(&tokens, |printer| {
                let mut table = Table::new(["TOKEN", "LABEL", "CREATED", "EXPIRES", "LAST USED"]);
                for token in &tokens {
                    table.row([
                        token.id.to_string(),
                        token.label.clone(),
                        time(&token.created_at),
                        time(&token.expires_at),
                        token.last_used_at.as_deref().map(time).unwrap_or_default(),
                    ]);
                }
                table.print(printer);
            })
        }
        TokenCommand::Revoke { token } => {
            client.revoke_token(&token).await?;
            printer.either(&serde_json::json!({"revoked": token}), |p| {
                p.note(&format!("revoked {token}"))
            })
        }
    }
}
