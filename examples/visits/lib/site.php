<?php
// What every page of this site uses: who answered, the two counters, and the frame of a page.
// It needs no database, no session and no extension beyond PHP's core.

declare(strict_types=1);

const COOKIE = 'visits';

/** Text for HTML. */
function h(string|int|float $text): string
{
    return htmlspecialchars((string) $text, ENT_QUOTES | ENT_SUBSTITUTE, 'UTF-8');
}

/** The version of this code, from the file that is part of it. */
function code_version(): string
{
    $text = @file_get_contents(__DIR__ . '/../VERSION');
    return $text === false ? 'unknown' : trim($text);
}

/** The release that the platform says this pool runs, if it says so. */
function release(): string
{
    $number = getenv('CONPAAS_RELEASE');
    return $number === false || $number === '' ? 'none' : $number;
}

/** The machine that runs this page. */
function backend(): string
{
    return gethostname() ?: 'unknown';
}

/** A folder of this backend only. It is gone when the backend is. */
function scratch(): string
{
    $folder = getenv('CONPAAS_SCRATCH');
    return $folder !== false && $folder !== '' ? $folder : sys_get_temp_dir();
}

/**
 * This visitor's pages so far, kept in the visitor's own cookie: right with any number of
 * backends, and nobody else's business. Call before any output.
 */
function count_visitor(): int
{
    $before = filter_var($_COOKIE[COOKIE] ?? '0', FILTER_VALIDATE_INT, [
        'options' => ['min_range' => 0, 'max_range' => 999999, 'default' => 0],
    ]);
    $now = $before + 1;
    setcookie(COOKIE, (string) $now, [
        'expires' => time() + 30 * 24 * 3600,
        'path' => '/',
        'httponly' => true,
        'samesite' => 'Lax',
    ]);
    return $now;
}

/**
 * Pages that this backend answered, kept in its scratch folder: each backend has its own number,
 * and a new backend begins at one. Returns null when the folder cannot be written.
 */
function count_backend(): ?int
{
    $file = @fopen(scratch() . '/visits.count', 'c+');
    if ($file === false) {
        return null;
    }
    try {
        if (!flock($file, LOCK_EX)) {
            return null;
        }
        $now = (int) stream_get_contents($file) + 1;
        rewind($file);
        ftruncate($file, 0);
        fwrite($file, (string) $now);
        fflush($file);
        return $now;
    } finally {
        fclose($file);
    }
}

/** Prints a page around what $content prints. */
function page(string $title, string $here, callable $content): void
{
    $backend = backend();
    $hue = crc32($backend) % 360;
    $links = ['/' => 'Visits', '/settings.php' => 'Settings', '/upload.php' => 'Upload', '/about.php' => 'About'];
    header('Content-Type: text/html; charset=utf-8');
    header('Cache-Control: no-store');
    header('X-Backend: ' . $backend);
    header('X-Code-Version: ' . code_version());
    ?>
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title><?= h($title) ?> &middot; Visits</title>
<link rel="icon" href="/assets/mark.svg" type="image/svg+xml">
<link rel="stylesheet" href="/assets/site.css">
<link rel="stylesheet" href="/assets/theme.css">
</head>
<body>
<header>
  <a class="mark" href="/"><img src="/assets/mark.svg" width="36" height="36" alt=""> Visits</a>
  <nav>
    <?php foreach ($links as $link => $name): ?>
    <a href="<?= h($link) ?>"<?= $link === $here ? ' aria-current="page"' : '' ?>><?= h($name) ?></a>
    <?php endforeach ?>
  </nav>
</header>
<main>
<h1><?= h($title) ?></h1>
<?php $content() ?>
</main>
<footer>
  <span class="dot" style="background: hsl(<?= $hue ?> 70% 45%)"></span>
  answered by <strong><?= h($backend) ?></strong>,
  code <strong><?= h(code_version()) ?></strong>,
  release <strong><?= h(release()) ?></strong>
</footer>
</body>
</html>
<?php
}
