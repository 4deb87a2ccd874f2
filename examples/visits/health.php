<?php
// Answers as soon as PHP runs; counts nothing.
declare(strict_types=1);
require __DIR__ . '/lib/site.php';
header('Content-Type: application/json');
header('Cache-Control: no-store');
echo json_encode([
    'ok' => true,
    'backend' => backend(),
    'version' => code_version(),
    'release' => release(),
]), "\n";
