// A server that counts how often each path was asked for.
'use strict';
const http = require('http');

const counts = new Map();
const server = http.createServer((request, answer) => {
  const count = (counts.get(request.url) || 0) + 1;
  counts.set(request.url, count);
  const body = String(count);
  answer.setHeader('Content-Length', body.length);
  answer.end(body);
});
server.keepAliveTimeout = 600000;
server.listen(Number(process.argv[2]), '127.0.0.1');
process.on('SIGTERM', () => process.exit(0));
