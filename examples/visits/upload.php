<?php
declare(strict_types=1);
require __DIR__ . '/lib/site.php';
count_visitor();
count_backend();

// The file is read, measured and forgotten: nothing is kept, so nothing has to be shared.
$asked = ($_SERVER['REQUEST_METHOD'] ?? 'GET') === 'POST';
$file = $_FILES['file'] ?? null;
$good = is_array($file) && $file['error'] === UPLOAD_ERR_OK && is_uploaded_file($file['tmp_name']);
if ($asked && !$good) {
    http_response_code(400);
}

page('Upload', '/upload.php', function () use ($asked, $good, $file): void { ?>
<p class="lead">Send a file through edge and proxy to a backend. It is measured, not kept.</p>
<?php if ($asked && $good): ?>
<table id="received">
  <tr><td>Name</td><td><?= h((string) $file['name']) ?></td></tr>
  <tr><td>Bytes</td><td><?= h((int) $file['size']) ?></td></tr>
  <tr><td>SHA-256</td><td><code><?= h((string) hash_file('sha256', $file['tmp_name'])) ?></code></td></tr>
</table>
<?php elseif ($asked): ?>
<p class="problem">No whole file arrived. The most that this backend takes is
   <?= h((string) ini_get('upload_max_filesize')) ?> a file and
   <?= h((string) ini_get('post_max_size')) ?> a request; both are settings.</p>
<?php endif ?>
<form method="post" enctype="multipart/form-data">
  <label>File <input type="file" name="file" required></label>
  <button>Send</button>
</form>
<?php });
