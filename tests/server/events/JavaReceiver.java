import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.HexFormat;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/**
 * A webhook receiver with one secret, as partners write it in Java: it compares one header with one value.
 *
 * The secret is the last part of the path. Prints the port. Answers 200, or 401 for a wrong signature.
 */
public class JavaReceiver {
    public static void main(String[] arguments) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
        server.createContext("/", exchange -> {
            byte[] body = exchange.getRequestBody().readAllBytes();
            String[] path = exchange.getRequestURI().getPath().split("/");
            String given = exchange.getRequestHeaders().getFirst("X-Operator-Signature");
            boolean right;
            try {
                Mac mac = Mac.getInstance("HmacSHA256");
                mac.init(new SecretKeySpec(path[path.length - 1].getBytes(StandardCharsets.UTF_8), "HmacSHA256"));
                right = ("sha256=" + HexFormat.of().formatHex(mac.doFinal(body))).equals(given);
            } catch (java.security.GeneralSecurityException error) {
                throw new java.io.IOException(error);
            }
            exchange.sendResponseHeaders(right ? 200 : 401, -1);
            exchange.close();
        });
        server.start();
        System.out.println(server.getAddress().getPort());
    }
}
