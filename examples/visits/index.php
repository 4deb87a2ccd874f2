<?php
declare(strict_types=1);
require __DIR__ . '/lib/site.php';

$mine = count_visitor();
$theirs = count_backend();

page('Who answered?', '/', function () use ($mine, $theirs): void { ?>
<p class="lead">Reload, and watch which backend answers. Each has a colour of its own.</p>
<section class="cards">
  <article style="--hue: <?= crc32(backend()) % 360 ?>" class="backend">
    <h2>Backend</h2>
    <p class="big" id="backend"><?= h(backend()) ?></p>
    <p>PHP <?= h(PHP_VERSION) ?> ran this page on that machine.</p>
  </article>
  <article>
    <h2>Your visits</h2>
    <p class="big" id="visits"><?= h($mine) ?></p>
    <p>Counted in a cookie of your browser, so it is right whichever backend answers.</p>
  </article>
  <article>
    <h2>This backend</h2>
    <p class="big" id="answered"><?= $theirs === null ? 'not counted' : h($theirs) ?></p>
    <p>Pages that this one backend answered, in a file of its own. It starts again at one
       when the backend is replaced or gets another release.</p>
  </article>
  <article class="version">
    <h2>Version</h2>
    <p class="big" id="version"><?= h(code_version()) ?></p>
    <p>From the file <code>VERSION</code> of the code; the platform calls it release
       <?= h(release()) ?>.</p>
  </article>
</section>
<?php });
