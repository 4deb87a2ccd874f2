<?php
// Shown by a service that has no code yet.
header('Cache-Control: no-store');
?>
<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Your service is running</title>
  <link rel="stylesheet" href="/welcome.css">
</head>
<body>
  <main>
    <h1>Your service is running</h1>
    <p>It has no code yet. Upload an archive with your application and this page gives way to it:</p>
    <pre>conpaas code upload APP/SERVICE site.tar.gz</pre>
    <p class="small">Answered by <?= htmlspecialchars(gethostname() ?: 'a backend') ?>, PHP <?= PHP_MAJOR_VERSION . '.' . PHP_MINOR_VERSION ?>.</p>
  </main>
</body>
</html>
