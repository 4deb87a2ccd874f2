//! The application under the checker's load: small pages that say which version they are, twice
//! in each reply, so that a mixture within one request shows.

use crate::archive;
use std::path::Path;

/// Lines of the static file.
pub const LINES: usize = 3000;
/// Events of one stream.
pub const EVENTS: usize = 25;

const INDEX: &str = r"<?php
$first = require __DIR__ . '/first.php';
usleep(2000);
$last = require __DIR__ . '/last.php';
header('Content-Type: application/json');
echo json_encode(['version' => $first, 'last' => $last, 'host' => gethostname(),
    'path' => parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH), 'fill' => str_repeat('x', 3000)]);
";

const SLOW: &str = r"<?php
$first = require __DIR__ . '/first.php';
$until = microtime(true) + (int) $_GET['s'];
while (microtime(true) < $until) { usleep(50000); }
$last = require __DIR__ . '/last.php';
header('Content-Type: application/json');
echo json_encode(['version' => $first, 'last' => $last, 'host' => gethostname()]);
";

const HASH: &str = r"<?php
$first = require __DIR__ . '/first.php';
$hash = hash_file('sha256', 'php://input');
$last = require __DIR__ . '/last.php';
header('Content-Type: application/json');
echo json_encode(['version' => $first, 'last' => $last, 'method' => $_SERVER['REQUEST_METHOD'],
    'hash' => $hash]);
";

const STREAM: &str = r"<?php
$version = require __DIR__ . '/first.php';
header('Content-Type: text/event-stream');
while (ob_get_level() > 0) { ob_end_flush(); }
for ($i = 0; $i < EVENTS; $i++) {
    echo 'id: ' . $i . PHP_EOL . 'data: ' . $version . PHP_EOL . PHP_EOL;
    flush();
    usleep(100000);
}
";

const COUNT: &str = r"<?php
$version = require __DIR__ . '/first.php';
session_start();
$_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1;
header('Content-Type: application/json');
echo json_encode(['version' => $version, 'last' => $version, 'n' => $_SESSION['n']]);
";

/// Writes the application's archive of one version.
pub fn write(path: &Path, version: u64) {
    let number = format!("<?php return {version};\n");
    let stream = STREAM.replace("EVENTS", &EVENTS.to_string());
    archive::tar_gz(
        path,
        &[
            ("index.php", INDEX),
            ("first.php", &number),
            ("last.php", &number),
            ("slow.php", SLOW),
            ("hash.php", HASH),
            ("stream.php", &stream),
            ("count.php", COUNT),
            ("files/static.txt", &static_file(version)),
        ],
    );
}

/// The static file of a version.
pub fn static_file(version: u64) -> String {
    (0..LINES)
        .map(|line| format!("{version} line {line} of a file that the archive holds\n"))
        .collect()
}
