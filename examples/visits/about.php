<?php
declare(strict_types=1);
require __DIR__ . '/lib/site.php';
count_visitor();
count_backend();

page('About', '/about.php', function (): void { ?>
<p class="lead">A few PHP files without a framework or a database, made to show the platform at work.</p>
<dl>
  <dt>Proxy</dt><dd>took your request and chose a backend.</dd>
  <dt>Web</dt><dd>served the style sheets and the mark from disk. It does so even with all backends gone.</dd>
  <dt>Backend</dt><dd>ran PHP for this page. Ask for more of them with
     <code>conpaas service scale demo/web backend=+1</code>.</dd>
</dl>
<p>What is counted where: your visits in your browser's cookie, each backend's pages in a file of
   that backend alone. There is no total over all backends, because nothing here is shared between
   them; that would take a database.</p>
<?php });
