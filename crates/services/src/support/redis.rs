//! Connections to a store that speaks redis' protocol, bounded in time. What is asked is the
//! roles' business.

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, FromRedisValue, IntoConnectionInfo,
    RedisConnectionInfo,
};
use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

/// A connection that was logged in, if it had to be.
pub struct Store(MultiplexedConnection);

impl Store {
    /// Connects, within `limit`; every answer must come within it, too.
    pub async fn connect(
        at: SocketAddrV4,
        login: Option<(&str, &str)>,
        limit: Duration,
    ) -> io::Result<Self> {
        // Whoever has no name may not say which library it is, either.
        let mut settings = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some((user, password)) = login {
            settings = settings.set_username(user).set_password(password);
        }
        let info = ConnectionAddr::Tcp(at.ip().to_string(), at.port())
            .into_connection_info()
            .map_err(io::Error::other)?
            .set_redis_settings(settings);
        let client = Client::open(info).map_err(io::Error::other)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(Some(limit));
        let connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(io::Error::other)?;
        Ok(Self(connection))
    }

    /// Asks and waits for the answer; a refusal is an error.
    pub async fn ask<T: FromRedisValue>(&mut self, words: &[&str]) -> io::Result<T> {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        command
            .query_async(&mut self.0)
            .await
            .map_err(io::Error::other)
    }
}
