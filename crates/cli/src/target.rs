//! What people point at: `APP`, `APP/SERVICE` or `APP/SERVICE/NODE`, each by name or id, with
//! `OWNER:` before another's application.

use std::fmt;
use std::str::FromStr;

/// An application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppTarget {
    /// `NAME`, `OWNER:NAME` or an id, as the API takes it.
    pub app: String,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTarget {
    pub app: String,
    pub service: String,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTarget {
    pub app: String,
    pub service: String,
    pub node: String,
}

/// Any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub app: String,
    pub service: Option<String>,
    pub node: Option<String>,
}

fn part(text: &str, what: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err(format!("the {what} is missing"));
    }
    match text
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
    {
        Some(bad) => Err(format!("'{bad}' cannot be in the name of the {what}")),
        None => Ok(text.to_owned()),
    }
}

fn app_part(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some((owner, name)) => {
            part(owner, "owner")?;
            part(name, "application")?;
        }
        None => {
            part(text, "application")?;
        }
    }
    Ok(text.to_owned())
}

impl FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() > 3 {
            return Err("a target is APP, APP/SERVICE or APP/SERVICE/NODE".to_owned());
        }
        Ok(Self {
            app: app_part(parts.first().copied().unwrap_or_default())?,
            service: parts.get(1).map(|text| part(text, "service")).transpose()?,
            node: parts.get(2).map(|text| part(text, "node")).transpose()?,
        })
    }
}

impl FromStr for AppTarget {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Target>()? {
            Target {
                app, service: None, ..
            } => Ok(Self { app }),
            _ => Err("an application is meant here: APP or OWNER:APP".to_owned()),
        }
    }
}

impl FromStr for ServiceTarget {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Target>()? {
            Target {
                app,
                service: Some(service),
                node: None,
            } => Ok(Self { app, service }),
            _ => Err("a service is meant here: APP/SERVICE".to_owned()),
        }
    }
}

impl FromStr for NodeTarget {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Target>()? {
            Target {
                app,
                service: Some(service),
                node: Some(node),
            } => Ok(Self { app, service, node }),
            _ => Err("a node is meant here: APP/SERVICE/NODE".to_owned()),
        }
    }
}

impl fmt::Display for ServiceTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.service)
    }
}

impl fmt::Display for NodeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.app, self.service, self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_understood() {
        let full: Target = "ada:shop/web/web-3".parse().unwrap();
        assert_eq!(
            full,
            Target {
                app: "ada:shop".into(),
                service: Some("web".into()),
                node: Some("web-3".into())
            }
        );
        assert_eq!("app-1x".parse::<AppTarget>().unwrap().app, "app-1x");
        assert_eq!(
            "shop/web".parse::<ServiceTarget>().unwrap().to_string(),
            "shop/web"
        );
        assert_eq!("shop/web/3".parse::<NodeTarget>().unwrap().node, "3");
    }

    #[test]
    fn wrong_forms_are_named() {
        for (text, why) in [
            ("", "the application is missing"),
            ("shop/", "the service is missing"),
            ("/web", "the application is missing"),
            (":shop", "the owner is missing"),
            (
                "a/b/c/d",
                "a target is APP, APP/SERVICE or APP/SERVICE/NODE",
            ),
            ("sh op", "' ' cannot be in the name of the application"),
            ("shop/w?b", "'?' cannot be in the name of the service"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap_err(), why, "{text}");
        }
        assert!("shop/web".parse::<AppTarget>().is_err());
        assert!("shop".parse::<ServiceTarget>().is_err());
        assert!("shop/web".parse::<NodeTarget>().is_err());
    }
}
