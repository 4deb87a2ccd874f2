<?php
declare(strict_types=1);
require __DIR__ . '/lib/site.php';
count_visitor();
count_backend();

$names = [
    'memory_limit', 'max_execution_time', 'max_input_time', 'upload_max_filesize', 'post_max_size',
    'max_file_uploads', 'display_errors', 'error_reporting', 'date.timezone', 'default_charset',
    'session.gc_maxlifetime', 'opcache.enable', 'opcache.memory_consumption',
];

page('Settings', '/settings.php', function () use ($names): void { ?>
<p class="lead">What this backend's PHP runs with. Change one with <code>conpaas service set</code>
   and reload.</p>
<table>
  <tr><th>Setting</th><th>Value</th></tr>
  <tr><td>PHP</td><td><?= h(PHP_VERSION . ', ' . PHP_SAPI) ?></td></tr>
  <?php foreach ($names as $name): $value = ini_get($name); ?>
  <tr><td><?= h($name) ?></td><td><?= h($value === false ? 'not there' : ($value === '' ? 'empty' : $value)) ?></td></tr>
  <?php endforeach ?>
  <tr><td>extensions</td><td><?= h(implode(', ', get_loaded_extensions())) ?></td></tr>
</table>
<?php });
