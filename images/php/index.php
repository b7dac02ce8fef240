<?php
// A router script for PHP's built-in server, with a session in /tmp as PHP keeps them.
session_save_path('/tmp');
session_start();
$_SESSION['calls'] = ($_SESSION['calls'] ?? 0) + 1;
error_log('call ' . $_SESSION['calls']);
header('X-Served-By: php');
http_response_code($_SERVER['REQUEST_METHOD'] === 'POST' ? 201 : 200);
$body = file_get_contents('php://input');
echo json_encode(['method' => $_SERVER['REQUEST_METHOD'], 'md5' => md5($body), 'calls' => $_SESSION['calls']]);
