//! Users and groups from the text of `passwd` and `group`: a static binary has no name service.

use std::path::Path;

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// All groups, the main one included.
    pub groups: Vec<u32>,
    pub home: String,
}

/// Finds a user in the texts of both files.
pub fn find(passwd: &str, group: &str, name: &str) -> Option<User> {
    let fields: Vec<&str> = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 6 && fields[0] == name)?;
    let (uid, gid) = (fields[2].parse().ok()?, fields[3].parse().ok()?);
    let mut groups = vec![gid];
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if fields.len() < 4 || !fields[3].split(',').any(|member| member == name) {
            continue;
        }
        if let Ok(extra) = fields[2].parse()
            && !groups.contains(&extra)
        {
            groups.push(extra);
        }
    }
    Some(User {
        name: name.to_owned(),
        uid,
        gid,
        groups,
        home: fields[5].to_owned(),
    })
}

/// Finds a user of this machine.
pub fn lookup(etc: &Path, name: &str) -> std::io::Result<Option<User>> {
    let passwd = std::fs::read_to_string(etc.join("passwd"))?;
    let group = std::fs::read_to_string(etc.join("group")).unwrap_or_default();
    Ok(find(&passwd, &group, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_comes_with_all_groups() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/srv:/bin/false\nbroken:x:a:b:::\n";
        let group = "web:x:34:\nlogs:x:7:root,web\nother:x:9:website\nagain:x:34:web\n";
        let user = find(passwd, group, "web").unwrap();
        assert_eq!((user.uid, user.gid), (33, 34));
        assert_eq!(user.groups, [34, 7]);
        assert_eq!(user.home, "/srv");
        assert_eq!(find(passwd, group, "broken"), None);
        assert_eq!(find(passwd, group, "nobody"), None);
    }
}
